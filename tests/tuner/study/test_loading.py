from __future__ import annotations

import json
import os
import pickle
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.families import FAMILIES
from tests.tuner.study.conftest import YAML, StudyFiles
from tuner.errors import UserError
from tuner.study import Search, SplitSettings, known_studies, load_study


def problems(files: StudyFiles, *, skip: bool = False) -> list[str]:
    """What loading complains of."""
    with pytest.raises(UserError) as caught:
        load_study(files.write(), skip_bad_videos=skip)
    return list(caught.value.problems)


def change(files: StudyFiles, line: int, **keys: object) -> None:
    """Set or, with `...`, remove keys of a question; lines count from 1."""
    question = dict(files.lines[line - 1])  # type: ignore[arg-type]
    for key, value in keys.items():
        if value is ...:
            del question[key]
        else:
            question[key] = value
    files.lines[line - 1] = question


def test_a_right_study_is_loaded_whole(files: StudyFiles) -> None:
    folder = files.write()
    study = load_study("mine")
    assert study.name == "mine"
    assert study.folder == folder.absolute()
    assert study.model == str((folder / "model").absolute())
    assert study.text_encoder == str((folder / "siglip").absolute())
    assert (study.frames, study.scoring, study.max_new_tokens, study.revision) == (8, "letter", 16, None)
    assert [video.name for video in study.videos] == ["v0.mp4", "v1.mp4", "v2.mp4", "v3.mp4"]
    assert study.videos[1].path == (folder / "videos" / "v1.mp4").absolute()
    assert len(study.held_out) == 3
    assert study.labelled
    assert study.skipped == ()
    question = study.questions[3]
    assert (question.id, question.text, question.options) == ("q3", "which color?", ("red", "blue"))
    assert (question.video, question.answer, question.tags, question.line) == (
        "v1.mp4",
        "red",
        {"type": "color"},
        4,
    )
    assert study.question("q3") is question
    assert study.video_of(question) is study.videos[1]


def test_the_parts_divide_videos_and_questions(files: StudyFiles) -> None:
    study = load_study(files.write())
    for split, count in (("tune", 1), ("held_out", 3)):
        names = {video.name for video in study.videos_of(split)}
        assert len(names) == count
        assert {question.video for question in study.questions_of(split)} == names
        assert all(study.split_of(question) == split for question in study.questions_of(split))
    assert len(study.questions_of("tune")) + len(study.questions_of("held_out")) == len(study.questions)


def test_every_key_arrives(files: StudyFiles) -> None:
    files.yaml = """\
name: other name
description: what it is for
model: organisation/model-7b
revision: abc123
text_encoder: organisation/siglip
frames: 32
videos: clips
questions: asked.jsonl
pooling: bilinear
allow_pickle: true
decode_timeout: 300
scoring: words
max_new_tokens: 5
split:
  held_out_videos: [v1.mp4]
search:
  fixed: {tau_t: 0.5}
  bounds:
    tau_s: [0.6, 0.9]
  choices:
    score_query: [mean]
    deduplicate: [drop, off]
"""
    folder = files.write()
    (folder / "videos").rename(folder / "clips")
    (folder / "questions.jsonl").rename(folder / "asked.jsonl")
    study = load_study(folder)
    assert (study.name, study.description) == ("other name", "what it is for")
    assert (study.model, study.revision) == ("organisation/model-7b", "abc123")
    assert study.text_encoder == "organisation/siglip"
    assert (study.frames, study.scoring, study.max_new_tokens) == (32, "words", 5)
    assert (study.pooling, study.allow_pickle, study.decode_timeout) == ("bilinear", True, 300)
    assert study.held_out == {"v1.mp4"}
    assert study.split == SplitSettings(held_out_videos=("v1.mp4",))
    assert study.search == Search(
        fixed=(("tau_t", 0.5),),
        bounds=(("tau_s", (0.6, 0.9)),),
        # `off` is a name here, and no truth value.
        choices=(("deduplicate", ("drop", "off")), ("score_query", ("mean",))),
    )


@pytest.mark.parametrize("given", ["mine", "studies/mine", "studies/mine/", "studies/mine/study.yaml"])
def test_a_study_is_found_by_name_folder_or_file(files: StudyFiles, given: str) -> None:
    files.write()
    assert load_study(given).name == "mine"
    if "/" in given:
        assert load_study(Path(given).absolute()).name == "mine"


def test_a_study_in_the_working_directory_is_found_by_name(files: StudyFiles) -> None:
    files.folder = Path("near")
    files.write()
    assert load_study("near").name == "near"
    os.chdir("near")
    assert load_study(".").name == "near"


def test_an_unknown_study_lists_the_known_ones(files: StudyFiles) -> None:
    files.write()
    with pytest.raises(
        UserError, match=r"there is no study 'mime' \(did you mean 'mine'\?\); known studies are .*mine"
    ):
        load_study("mime")


def test_the_packaged_studies_are_known_everywhere(files: StudyFiles) -> None:
    if not (Path(__file__).parents[3] / "studies" / "demo" / "study.yaml").is_file():
        pytest.skip("the demo study has no study.yaml yet")
    assert "demo" in known_studies()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "*"])
def test_a_name_no_file_system_takes_is_unknown(files: StudyFiles, name: str) -> None:
    with pytest.raises(UserError, match="there is no study"):
        load_study(name)


def test_a_folder_without_study_yaml_says_so(files: StudyFiles) -> None:
    (files.folder / "videos").mkdir(parents=True)
    with pytest.raises(UserError, match=r"studies/mine has no study\.yaml"):
        load_study("mine")


def test_a_file_that_is_no_study_says_so(files: StudyFiles) -> None:
    files.write()
    with pytest.raises(UserError, match=r"questions\.jsonl is no study; allowed is a study's folder"):
        load_study("studies/mine/questions.jsonl")


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("model: a\n b: c\n", "2: this is not YAML: mapping values are not allowed here"),
        ("model: [a\nframes: 8\n", "2: this is not YAML: "),
        ("frames: 8\nframes: 9\n", "2: this is not YAML: found duplicate key"),
        ("model: a\n\tframes: 8\n", "2: this is not YAML: "),
        ("", "1: empty is no study; allowed is a mapping with name, description, model"),
        ("- a\n", "1: ['a'] is no study"),
        (
            YAML + "modle: x\n",
            "4: unknown key 'modle' (did you mean 'model'?); allowed are name, description, ",
        ),
        (
            YAML + "split:\n  heldout: 1\n",
            "5: unknown key 'split.heldout' (did you mean 'held_out'?); allowed are ",
        ),
        ("# a\nmodel: model\nframes: 8\n", "1: text_encoder is missing; allowed is the SigLIP aligned with"),
        (YAML.replace("8", "1"), "3: frames is 1; allowed is a whole number from 2 on"),
        (YAML.replace("8", "'8'"), "3: frames is '8'; allowed is a whole number from 2 on"),
        (YAML.replace("8", "8.5"), "3: frames is 8.5; allowed is a whole number from 2 on"),
        (YAML.replace("8", "true"), "3: frames is true; allowed is a whole number from 2 on"),
        (YAML.replace("8", ""), "3: frames is empty; allowed is a whole number from 2 on"),
        (
            YAML + "scoring: number\n",
            "4: scoring is 'number'; allowed is 'letter', 'words' or ",
        ),
        (YAML + "pooling: sum\n", "4: pooling is 'sum'; allowed is 'average', 'bilinear' or 'max'"),
        (
            YAML + "pooling: average\n",
            "4: pooling is given, but the model is a LLaVA-OneVision checkpoint, which pools in one way only",
        ),
        (YAML + "allow_pickle: 1\n", "4: allow_pickle is 1; allowed is true or false"),
        (YAML + "decode_timeout: 0\n", "4: decode_timeout is 0; allowed is a number above 0: seconds"),
        (YAML + "decode_timeout: .inf\n", "4: decode_timeout is .inf; allowed is a number above 0: seconds"),
        (YAML + "max_new_tokens: 0\n", "4: max_new_tokens is 0; allowed is a whole number from 1 on"),
        (YAML + "split: {held_out: 1.0}\n", "4: split.held_out is 1.0; allowed is a number between 0 and 1"),
        (
            YAML + "split: {held_out: .nan}\n",
            "4: split.held_out is .nan; allowed is a number between",
        ),
        (YAML + "split:\n  seed: x\n", "5: split.seed is 'x'; allowed is a whole number"),
        (YAML + "split: half\n", "4: split is 'half'; allowed is the keys held_out, seed, held_out_videos"),
        (
            YAML + "split:\n  held_out_videos:\n  - v1.mp4\n  - v9.mp4\n",
            "7: held-out video 'v9.mp4' has no question (did you mean",
        ),
        (
            YAML + "split:\n  held_out_videos: [v0.mp4, v1.mp4, v2.mp4, v3.mp4]\n",
            "5: all videos are held out; allowed is to leave at least one to tune on",
        ),
        (
            YAML + "split: {held_out: 0.5, held_out_videos: [v0.mp4]}\n",
            "4: split has held_out_videos beside held_out or seed",
        ),
        (
            YAML + "search:\n  fixed:\n    tau: 0.5\n",
            "6: search.fixed names 'tau' (did you mean 'tau_t'?); allowed are tau_s, tau_t, alpha_boost, ",
        ),
        (YAML + "search:\n  fixed: {p: 1.5}\n", "5: search.fixed.p is 1.5; allowed is: p lies in "),
        (
            YAML + "search:\n  fixed: {p: high}\n",
            "5: search.fixed.p is 'high'; allowed is a number for each knob",
        ),
        (
            YAML + "search:\n  bounds:\n    tau_s: [0.9, 0.6]\n",
            "6: search.bounds.tau_s is [0.9, 0.6]; allowed is [lowest, highest], the first below the ",
        ),
        (
            YAML + "search:\n  bounds:\n    tau_t: [0.5, 2]\n",
            "6: search.bounds.tau_t is [0.5, 2]; allowed is ",
        ),
        (
            YAML + "search:\n  bounds: {p: [0.5]}\n",
            "5: search.bounds.p is [0.5]; allowed is [lowest, highest]",
        ),
        (
            YAML + "search:\n  fixed: {p: 0.8}\n  bounds: {p: [0.5, 0.9]}\n",
            "5: p is under both search.fixed and search.bounds",
        ),
        (
            YAML + "search:\n  choices:\n    dedupe: [drop]\n",
            "6: search.choices names 'dedupe' (did you mean 'deduplicate'?); allowed are deduplicate, ",
        ),
        (
            YAML + "search:\n  choices: {relevance_norm: [minmax, raw]}\n",
            "5: search.choices names 'relevance_norm', which the range of tau_t depends on; allowed are ",
        ),
        (
            YAML + "search:\n  choices: {p: [high]}\n",
            "5: search.choices names 'p', a knob, which search.fixed and search.bounds are for; allowed are ",
        ),
        (
            YAML + "search:\n  choices:\n    deduplicate:\n    - demote\n    - dropp\n",
            "8: search.choices.deduplicate has 'dropp' (did you mean 'drop'?); allowed are demote, drop, off",
        ),
        (
            YAML + "search:\n  choices: {score_query: [last, mean, last]}\n",
            "5: search.choices.score_query has 'last' more than once; allowed is each value once",
        ),
        (
            YAML + "search:\n  choices: {deduplicate: []}\n",
            "5: search.choices.deduplicate is []; allowed are one or more of demote, drop, off",
        ),
        (
            YAML + "search:\n  choices: {deduplicate: drop}\n",
            "5: search.choices.deduplicate is 'drop'; allowed is a list of one or more names",
        ),
        (
            YAML + "search:\n  choices: {deduplicate: [false]}\n",
            "5: search.choices.deduplicate has 'false'; allowed are demote, drop, off",
        ),
        (YAML + "decode_timeout: 12e45678\n", "4: decode_timeout is 12e45678; allowed is a number above 0"),
        (YAML.replace("8", "2024-01-01"), "3: frames is 2024-01-01; allowed is a whole number from 2 on"),
        (YAML.replace("8", "1:30"), "3: frames is '1:30'; allowed is a whole number from 2 on"),
        (YAML.replace("8", "0x" + "f" * 5000), "3: frames is 0xfff"),
        (YAML.replace("8", "9" * 5000), "3: frames is '999"),
        (YAML + "allow_pickle: yes\n", "4: allow_pickle is 'yes'; allowed is true or false"),
        (YAML + 'name: "a\\0b"\n', "4: name holds a character that is none: 'a\\x00b'; allowed is a name"),
        (YAML + 'description: "\\ud800"\n', "4: description holds a character that is none: '\\ud800'"),
        (YAML + "a: &a [b, *a]\n", "4: this is not YAML: an alias that holds itself"),
        (
            YAML + "b: !!python/name:os.system x\n",
            "4: this is not YAML: could not determine",
        ),
        (YAML + "b: !new [x]\n", "4: this is not YAML: the tag !new"),
        (YAML + "b: x\x01y\n", "4: this is not YAML: it holds the character '\\x01'"),
        (YAML + "? [b]\n: c\n", "4: this is not YAML: a key that is no text"),
        (YAML + "---\n" + YAML, "4: this is not YAML: but found another document"),
        (YAML + "name: a/b\n", "4: name is 'a/b'; allowed is a name of up to 100 characters"),
        (YAML + "name: ..\n", "4: name is '..'; allowed is a name of up to 100 characters"),
        (YAML + "revision: abc\n", "4: revision is given, but model is a folder"),
        (
            YAML + "videos: films\n",
            "4: studies/mine/films is no folder; allowed is the folder that holds the videos",
        ),
        (
            YAML.replace(": model", ": modell"),
            "1: model is 'modell', and there is no folder studies/mine/modell",
        ),
        (YAML.replace(": model", ": ./a/b"), "1: model is './a/b', and there is no folder studies/mine/a/b"),
        (
            YAML.replace(": model", ": siglip"),
            "1: model folder studies/mine/siglip is no LLaVA-OneVision or LLaVA-Video checkpoint: ",
        ),
        (
            YAML.replace(": model", ": videos"),
            "1: model folder studies/mine/videos is no LLaVA-OneVision or LLaVA-Video checkpoint: ",
        ),
        (
            YAML.replace(": siglip", ": model"),
            "2: text_encoder folder studies/mine/model is no SigLIP checkpoint: ",
        ),
    ],
)
def test_a_mistake_in_study_yaml_gets_its_line_and_what_is_allowed(
    files: StudyFiles, yaml: str, expected: str
) -> None:
    files.yaml = yaml
    (problem,) = problems(files)
    assert problem.startswith(f"studies/mine/study.yaml:{expected}")
    assert "\n" not in problem


@pytest.mark.parametrize(
    "written", ["12e45678", "1e5", "0017", "0o17", "1_000", "2024-01-01", "no", "yes", "true", "1:30"]
)
def test_a_text_in_study_yaml_is_what_is_written(files: StudyFiles, written: str) -> None:
    """A commit may look like a number, and a video like a date."""
    files.yaml = YAML.replace(": model", ": a/b") + (
        f"revision: {written}\nname: {written}\nsplit: {{held_out_videos: [{written}]}}\n"
    )
    change(files, 8, video=written)
    folder = files.write()
    (folder / "videos" / written).write_bytes(b"video")
    study = load_study(folder)
    assert (study.revision, study.name, study.held_out) == (written, written, {written})


@pytest.mark.parametrize(("written", "read"), [("0o17", 15), ("017", 17), ("0x10", 16), ("1_000", 1000)])
def test_numbers_are_read_as_yaml_1_2_has_them(files: StudyFiles, written: str, read: int) -> None:
    files.yaml = YAML.replace("8", written)
    assert load_study(files.write()).frames == read


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("[\n" * 5000, "this is not YAML: it is nested too deeply"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefghi")),
            "this is not YAML: it has more than 20000 values, aliases among them counted in full",
        ),
        ("#" * (2**20 + 1), "has 1048577 bytes; allowed is a definition of up to 1048576"),
    ],
    ids=["deep", "bomb", "large"],
)
def test_what_would_take_for_ever_is_refused(files: StudyFiles, yaml: str, expected: str) -> None:
    files.yaml = yaml
    (problem,) = problems(files)
    assert problem == f"studies/mine/study.yaml: {expected}"


def test_questions_from_a_pipe_are_not_waited_for(files: StudyFiles) -> None:
    folder = files.write()
    (folder / "questions.jsonl").unlink()
    os.mkfifo(folder / "questions.jsonl")
    with pytest.raises(UserError, match=r"questions\.jsonl: cannot be read: it is no file"):
        load_study(folder)


def test_letters_before_options_do_not_hide_that_they_are_the_same(files: StudyFiles) -> None:
    change(files, 5, options=["A. red", "B. red"], answer="A. red")
    (problem,) = problems(files)
    assert problem.startswith("studies/mine/questions.jsonl:5: option 'red' occurs more than once")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_of_each_family_is_taken(files: StudyFiles, model_type: str) -> None:
    folder = files.write()
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert load_study(folder).model == str((folder / "model").absolute())


def test_a_model_of_another_kind_is_named(files: StudyFiles) -> None:
    folder = files.write()
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    (problem,) = problems(files)
    assert problem.endswith("its model_type is 'llama'; allowed is 'llava_onevision', 'llava', 'llava_qwen'")


@pytest.mark.parametrize("config", ["", "{", "[]", "{}", "\xff"])
def test_a_model_folder_with_a_broken_config_is_no_checkpoint(files: StudyFiles, config: str) -> None:
    folder = files.write()
    (folder / "model" / "config.json").write_text(config, encoding="latin-1")
    (problem,) = problems(files)
    assert "is no LLaVA-OneVision or LLaVA-Video checkpoint: its config.json names no model_type" in problem


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"id": "x", ', "this is not JSON: "),
        ("red", "this is not JSON: Expecting value, column 1"),
        (
            '["id"]',
            "['id'] is no question; allowed is an object with id, video, question, options, answer, tags",
        ),
        ('{"id": "x", "id": "y"}', "this is not JSON: key 'id' occurs twice"),
        ('{"id": NaN}', "this is not JSON: NaN is no JSON value"),
        ("[" * 100_000, "this is not JSON: "),
    ],
    ids=["cut", "word", "list", "twice", "nan", "deep"],
)
def test_a_broken_line_gets_its_number(files: StudyFiles, line: str, expected: str) -> None:
    files.lines[4] = line
    (problem,) = problems(files)
    assert problem.startswith(f"studies/mine/questions.jsonl:5: {expected}")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"id": "q1"}, "id 'q1' is taken by line 2; each id occurs once"),
        ({"id": " q1 "}, "id 'q1' is taken by line 2; each id occurs once"),
        ({"id": 5}, "id is 5; allowed is text that no other question has as its id"),
        ({"id": " "}, "id is ' '; allowed is text"),
        ({"id": "\ud800"}, "id holds a character that is none: '\\ud800'; allowed is text"),
        ({"question": ""}, "question is ''; allowed is the question without its options"),
        ({"question": ...}, "question is missing; allowed is the question without its options"),
        ({"options": ["red"]}, "options is ['red']; allowed is a list of 2 to 26 different texts"),
        ({"options": [str(n) for n in range(27)]}, "options is ['0', '1', "),
        ({"options": ["red", 2]}, "options[1] is 2; allowed is a list of 2 to 26 different texts"),
        ({"options": "red"}, "options is 'red'; allowed is a list of 2 to 26 different texts"),
        ({"options": ["red", "red "]}, "option 'red' occurs more than once; options differ from each other"),
        ({"answer": "green"}, "answer 'green' is not among the options; allowed is one of 'red', 'blue'"),
        ({"answer": "A"}, "answer 'A' is not among the options; allowed is one of 'red', 'blue'"),
        ({"answer": 0}, "answer is 0; allowed is text: one of the options where there are some"),
        ({"baseline": "A"}, "baseline 'A' is not among the options; allowed is one of 'red', 'blue'"),
        (
            {"anwser": "red"},
            "unknown key 'anwser' (did you mean 'answer'?); allowed are id, video, question, options, ",
        ),
        ({"tags": {"size": 3}}, "tags.size is 3; allowed is an object of texts"),
        ({"tags": ["small"]}, "tags is ['small']; allowed is an object of texts"),
        (
            {"answer": None},
            "this question has no answer, while 7 have one; allowed are answers to all questions or to",
        ),
        (
            {"video": "/etc/v0.mp4"},
            "video is '/etc/v0.mp4'; allowed is a path that stays inside studies/mine/videos",
        ),
        (
            {"video": "../v0.mp4"},
            "video is '../v0.mp4'; allowed is a path that stays inside studies/mine/videos",
        ),
        ({"video": "v.mp4"}, "video studies/mine/videos/v.mp4 is not there (did you mean 'v"),
        ({"video": "v0.mp4/x"}, "video studies/mine/videos/v0.mp4/x cannot be read"),
    ],
)
def test_a_mistake_in_a_question_gets_its_line_and_what_is_allowed(
    files: StudyFiles, keys: dict[str, object], expected: str
) -> None:
    change(files, 5, **keys)
    (problem,) = problems(files)
    assert problem.startswith(f"studies/mine/questions.jsonl:5: {expected}")
    assert "\n" not in problem


def test_lines_count_blank_ones_and_windows_endings(files: StudyFiles) -> None:
    change(files, 8, answer="green")
    files.lines.insert(2, "")
    folder = files.write()
    path = folder / "questions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(UserError, match=r"questions\.jsonl:9: answer 'green'"):
        load_study(folder)


def test_a_line_separator_inside_a_text_is_part_of_it(files: StudyFiles) -> None:
    change(files, 1, question="one\u2028two")
    files.lines[0] = json.dumps(files.lines[0], ensure_ascii=False)
    assert load_study(files.write()).questions[0].text == "one\u2028two"


def test_bytes_that_are_no_text_get_their_line(files: StudyFiles) -> None:
    folder = files.write()
    path = folder / "questions.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"questions\.jsonl:9: this is not UTF-8 text"):
        load_study(folder)


def test_no_questions_at_all_is_said_to_be_so(files: StudyFiles) -> None:
    files.lines = []
    assert problems(files) == ["studies/mine/questions.jsonl: there is no question in it"]
    (files.folder / "questions.jsonl").unlink()
    with pytest.raises(UserError, match=r"questions\.jsonl: there is no such file"):
        load_study(files.folder)


def test_one_video_cannot_be_split(files: StudyFiles) -> None:
    files.lines = files.lines[:2]
    (problem,) = problems(files)
    assert problem.endswith(
        "the questions are about 1 video; allowed are 2 or more: to tune on, and held out"
    )


def test_every_mistake_is_reported_together(files: StudyFiles) -> None:
    files.yaml = "modle: model\ntext_encoder: siglip\nframes: 1\nmodel: nowhere\n"
    files.lines[1] = "{"
    change(files, 3, answer="green")
    change(files, 4, id="q0")
    change(files, 5, video="elsewhere.mp4", colour="red")
    change(files, 6, video="missing.mp4")
    found = problems(files)
    for place, what in (
        ("study.yaml:1", "unknown key 'modle'"),
        ("study.yaml:3", "frames is 1"),
        ("questions.jsonl:2", "not JSON"),
        ("questions.jsonl:3", "answer 'green'"),
        ("questions.jsonl:4", "id 'q0' is taken by line 1"),
        ("questions.jsonl:5", "unknown key 'colour'"),
        ("questions.jsonl:6", "missing.mp4 is not there"),
    ):
        assert sum(place in problem and what in problem for problem in found) == 1, (place, what)
    assert len(found) == 7


def test_mistakes_in_choices_are_reported_with_those_in_knobs(files: StudyFiles) -> None:
    files.yaml = YAML + (
        "search:\n  fixed: {p: 2}\n"
        "  choices: {deduplicate: [drop, demot, drop], tau_t: [x], score_query: []}\n"
    )
    found = problems(files)
    places = [text.split(": ", 1)[0] for text in found]
    assert places == [f"studies/mine/study.yaml:{line}" for line in (5, 6, 6, 6, 6)]
    assert [text.split(": ", 1)[1].split(";")[0] for text in found[1:]] == [
        "search.choices.deduplicate has 'demot' (did you mean 'demote'?)",
        "search.choices.deduplicate has 'drop' more than once",
        "search.choices names 'tau_t', a knob, which search.fixed and search.bounds are for",
        "search.choices.score_query is []",
    ]


def test_a_hint_names_the_way_on_when_videos_are_bad(files: StudyFiles) -> None:
    change(files, 6, video="missing.mp4")
    with pytest.raises(UserError) as caught:
        load_study(files.write())
    assert str(caught.value).splitlines()[-1].startswith("--skip-bad-videos goes on without")


def test_bad_videos_are_skipped_with_their_questions(files: StudyFiles) -> None:
    everything = load_study(files.write())
    (files.folder / "videos" / "v1.mp4").write_bytes(b"")
    study = load_study(files.folder, skip_bad_videos=True)
    (skipped,) = study.skipped
    assert (skipped.name, skipped.questions) == ("v1.mp4", 2)
    assert skipped.reason.endswith("video studies/mine/videos/v1.mp4 is empty")
    assert [video.name for video in study.videos] == ["v0.mp4", "v2.mp4", "v3.mp4"]
    assert {question.video for question in study.questions} == {"v0.mp4", "v2.mp4", "v3.mp4"}
    assert study.held_out == everything.held_out - {"v1.mp4"}


def test_skipping_forgives_videos_only(files: StudyFiles) -> None:
    change(files, 5, answer="green")
    change(files, 6, video="missing.mp4")
    (problem,) = problems(files, skip=True)
    assert "answer 'green'" in problem


def test_nothing_left_to_tune_on_is_an_error_in_spite_of_skipping(files: StudyFiles) -> None:
    files.yaml += "split: {held_out_videos: [v0.mp4, v1.mp4, v2.mp4]}\n"
    files.write()
    (files.folder / "videos" / "v3.mp4").write_bytes(b"")
    assert problems(files, skip=True)[-1] == "without this video none is left to tune on"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_video_without_permission_is_bad(files: StudyFiles) -> None:
    files.write()
    (files.folder / "videos" / "v1.mp4").chmod(0)
    (problem,) = problems(files)
    assert "v1.mp4 cannot be read: permission denied" in problem


def test_a_folder_in_place_of_a_video_is_bad(files: StudyFiles) -> None:
    files.write()
    (files.folder / "videos" / "v1.mp4").unlink()
    (files.folder / "videos" / "v1.mp4").mkdir()
    (problem,) = problems(files)
    assert "v1.mp4 is a folder, not a video file" in problem


def test_two_spellings_of_a_path_are_one_video(files: StudyFiles) -> None:
    change(files, 1, video="./v0.mp4")
    assert len(load_study(files.write()).videos) == 4


def test_a_study_without_labels_has_none(files: StudyFiles) -> None:
    for line in range(1, 9):
        change(files, line, answer=...)
    assert not load_study(files.write()).labelled


def test_free_questions_have_no_options(files: StudyFiles) -> None:
    change(files, 1, options=..., answer="a red ring")
    change(files, 2, options=None)
    study = load_study(files.write())
    assert study.questions[0].options is study.questions[1].options is None


def test_the_order_of_lines_moves_no_video(files: StudyFiles) -> None:
    before = load_study(files.write()).held_out
    files.lines.reverse()
    assert load_study(files.write()).held_out == before


def test_a_study_survives_pickling(files: StudyFiles) -> None:
    study = load_study(files.write())
    assert pickle.loads(pickle.dumps(study)) == study
    assert hash(study.questions[0]) == hash(pickle.loads(pickle.dumps(study.questions[0])))


def test_unreadable_definitions_are_mistakes_too(files: StudyFiles) -> None:
    folder = files.write()
    shutil.rmtree(folder / "videos")
    (folder / "questions.jsonl").unlink()
    (folder / "questions.jsonl").mkdir()
    with pytest.raises(UserError) as caught:
        load_study(folder)
    assert caught.value.problems[0].startswith("studies/mine/questions.jsonl: cannot be read: ")
    assert caught.value.problems[1].startswith("studies/mine/study.yaml:1: studies/mine/videos is no folder")


def leads_out(folder: Path, how: str) -> None:
    """Makes the study's questions or one of its videos lie outside its folder."""
    outside = folder.parent / "elsewhere"
    outside.mkdir()
    if how == "questions":
        shutil.move(folder / "questions.jsonl", outside)
        text = (folder / "study.yaml").read_text()
        (folder / "study.yaml").write_text(text + "questions: ../elsewhere/questions.jsonl\n")
    elif how == "videos":
        shutil.move(folder / "videos", outside)
        (folder / "study.yaml").write_text(
            (folder / "study.yaml").read_text() + f"videos: {outside}/videos\n"
        )
    else:
        video = folder / "videos" / "v0.mp4"
        shutil.move(video, outside)
        video.symlink_to(outside / video.name)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("questions", "questions is '../elsewhere/questions.jsonl', which leads out of the study's folder"),
        ("videos", "elsewhere/videos', which leads out of the study's folder"),
        ("link", "a video leads out of the study's folder, by a link, such as 'v0.mp4', which is "),
    ],
)
def test_a_study_reads_nothing_outside_its_folder_unless_it_says_so(
    files: StudyFiles, how: str, message: str
) -> None:
    folder = files.write().absolute()
    before = load_study(folder)
    leads_out(folder, how)
    with pytest.raises(UserError) as refused:
        load_study(folder)
    (said,) = [problem for problem in refused.value.problems if message in problem]
    assert "any with `allow_outside: true` in study.yaml" in said
    with (folder / "study.yaml").open("a") as file:
        file.write("allow_outside: true\n")
    assert load_study(folder).questions == before.questions


def test_a_study_folder_that_is_itself_a_link_is_read(files: StudyFiles) -> None:
    folder = files.write().absolute()
    link = folder.parent.parent / "link"
    link.symlink_to(folder)
    assert len(load_study(link).videos) == 4
