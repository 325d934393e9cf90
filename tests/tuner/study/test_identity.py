from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.tuner.study.conftest import StudyFiles
from tuner.errors import UserError
from tuner.study import Search, Study, StudyIdentity, describe_changes, load_study, study_identity


@pytest.fixture
def study(files: StudyFiles) -> Study:
    return load_study(files.write())


def identity(study: Study, model: str = "model", encoding: str = "encoding", **hashes: str) -> StudyIdentity:
    content = {video.name: hashes.get(video.name[:2], f"bytes of {video.name}") for video in study.videos}
    return study_identity(study, model=model, encoding=encoding, content_hashes=content)


def with_question(study: Study, index: int, **fields: object) -> Study:
    questions = list(study.questions)
    questions[index] = replace(questions[index], **fields)  # type: ignore[arg-type]
    return replace(study, questions=tuple(questions))


def test_an_unchanged_study_is_the_same_study(study: Study) -> None:
    assert identity(study).hash == identity(load_study("mine")).hash
    assert describe_changes(identity(study).parts, identity(study).parts) == []


def test_the_parts_are_plain_json(study: Study) -> None:
    parts = identity(study).parts
    assert json.loads(json.dumps(parts)) == parts


@pytest.mark.parametrize(
    "change",
    [
        lambda study: replace(study, name="other", description="other"),
        lambda study: replace(study, search=Search(fixed=(("p", 0.5),))),
        lambda study: replace(study, search=Search(choices=(("deduplicate", ("demote", "drop")),))),
        lambda study: with_question(study, 0, tags={"type": "shape"}, line=99),
    ],
    ids=["name", "search", "choices", "tags"],
)
def test_what_no_answer_depends_on_is_no_part_of_it(study: Study, change: Callable[[Study], Study]) -> None:
    assert identity(change(study)).hash == identity(study).hash


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: identity(replace(s, frames=16), encoding="e16"), ["frames: 8 before, 16 now"]),
        (lambda s: identity(replace(s, scoring="words")), ["scoring: letter before, words now"]),
        (lambda s: identity(replace(s, max_new_tokens=4)), ["max_new_tokens: 16 before, 4 now"]),
        (
            lambda s: identity(s, model="m2", encoding="e2"),
            ["the model is another one: model before, m2 now"],
        ),
        (
            lambda s: identity(s, encoding="e2"),
            ["videos and questions are encoded differently: another text encoder or another preprocessing"],
        ),
        (lambda s: identity(s, v1="others"), ["1 video changed (v1.mp4)"]),
        (
            lambda s: identity(with_question(with_question(s, 0, answer="blue"), 2, text="which?")),
            ["2 questions changed (q0, q2): answer, question"],
        ),
        (lambda s: identity(replace(s, questions=s.questions[:-1])), ["1 question removed (q7)"]),
        (
            lambda s: identity(with_question(s, 0, id="q9")),
            ["1 question added (q9)", "1 question removed (q0)"],
        ),
        (lambda s: identity(replace(s, questions=s.questions[::-1])), ["the questions are in another order"]),
        (
            lambda s: identity(
                replace(s, videos=s.videos[:-1], questions=s.questions[:-2], held_out=s.held_out - {"v3.mp4"})
            ),
            ["1 video removed (v3.mp4)", "2 questions removed (q6, q7)"],
        ),
    ],
)
def test_a_change_changes_the_hash_and_is_described(
    study: Study, change: Callable[[Study], StudyIdentity], expected: list[str]
) -> None:
    before, after = identity(study), change(study)
    assert after.hash != before.hash
    assert describe_changes(before.parts, after.parts) == expected


def test_a_moved_video_is_described(study: Study) -> None:
    before = identity(replace(study, held_out=frozenset({"v0.mp4", "v1.mp4"})))
    after = identity(replace(study, held_out=frozenset({"v1.mp4", "v2.mp4"})))
    assert describe_changes(before.parts, after.parts) == [
        "1 video now held out (v2.mp4)",
        "1 video now tuned on (v0.mp4)",
    ]


def test_many_names_are_counted(study: Study) -> None:
    old = identity(study).parts
    new = {**old, "videos": {**old["videos"], **{f"n{number}.mp4": "x" for number in range(12)}}}
    assert describe_changes(old, new) == [
        "12 videos added (n0.mp4, n1.mp4, n2.mp4, n3.mp4, n4.mp4 and 7 more)"
    ]


def test_the_same_bytes_in_both_parts_are_refused(study: Study) -> None:
    split = replace(study, held_out=frozenset({"v0.mp4", "v1.mp4"}))
    with pytest.raises(UserError, match=r"tuned on and held out under different names: v1\.mp4, v2\.mp4"):
        identity(split, v1="same", v2="same")
    identity(split, v0="same", v1="same")


def test_other_rules_for_free_answers_make_another_study_only_where_there_are_some(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import answering

    study = replace(
        study, questions=tuple(question for question in study.questions if question.options is not None)
    )
    free = replace(study, questions=tuple(replace(question, options=None) for question in study.questions))
    before, free_before = identity(study), identity(free)
    monkeypatch.setattr(answering, "MATCHING_VERSION", answering.MATCHING_VERSION + 1)
    assert identity(study) == before
    assert describe_changes(free_before.parts, identity(free).parts) == [
        "this version compares free answers by other rules"
    ]
