"""One contract for all importers: what is certain becomes a study, all else is listed with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tuner.importing.samples import (
    COLORS,
    SAMPLES,
    Sample,
    lmms_eval_line,
    videomme_row,
    write_rows,
)
from tuner.errors import UserError
from tuner.importing.formats import FORMATS, format_of
from tuner.importing.importing import SKIP_HINT, Imported, import_study
from tuner.importing.study_files import Settings
from tuner.study import load_study

pytestmark = pytest.mark.quick

samples = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.format} {sample.file}")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_videos(names: Any) -> Path:
    folder = Path("clips")
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return folder


def imported(sample: Sample, source: Path, **options: Any) -> Imported:
    return import_study("mydata", sample.format, source, Settings(Path("clips")), **options)


def written() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("studies/mydata/questions.jsonl").read_text().splitlines()]


def problems(sample: Sample, source: Path, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        imported(sample, source, **options)
    assert not Path("studies").exists(), "nothing is written"
    return list(caught.value.problems)


def test_every_format_is_in_the_contract() -> None:
    assert {sample.format for sample in SAMPLES} == set(FORMATS)


@samples
def test_rows_become_a_study_that_loads(sample: Sample) -> None:
    write_videos(sample.videos)
    result = imported(sample, sample.write(Path()))
    assert written() == list(sample.questions)
    study = load_study("mydata")
    assert study == result.study
    assert [question.id for question in study.questions] == [question["id"] for question in sample.questions]
    assert all(video.path.is_file() for video in study.videos)
    assert result.left_out == ()
    assert result.baselines == sum("baseline" in question for question in sample.questions)


@samples
def test_missing_videos_are_listed_with_their_rows(sample: Sample) -> None:
    write_videos(sample.videos)
    gone = sample.questions[0]["video"]
    (Path("clips") / gone).unlink()
    source = sample.write(Path())
    found = problems(sample, source)
    rows = [number for number, question in enumerate(sample.questions) if question["video"] == gone]
    assert len(found) == len(rows)
    for number, problem in zip(rows, found, strict=True):
        assert problem.startswith(f"{sample.place(source, number)}: the video ")
        assert problem.endswith(" is not in clips")


@samples
def test_a_row_that_cannot_be_read_is_listed_and_left_out_when_asked_to(sample: Sample) -> None:
    write_videos(sample.videos)
    first, *others = sample.rows
    source = sample.write(Path(), [first, sample.broken, *others])
    with pytest.raises(UserError) as caught:
        imported(sample, source)
    sentence = f"{sample.place(source, 1)}: {sample.reason}"
    # A line of a CSV may hold several lines.
    assert list(caught.value.problems) == [sentence]
    assert caught.value.hint == SKIP_HINT
    assert not Path("studies").exists()
    assert imported(sample, source, skip_bad_rows=True).left_out == (sentence,)
    assert [entry["question"] for entry in written()] == [
        question["question"] for question in sample.questions
    ]


@samples
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'[1, "x"]\n', b"\xff\xfe\x00", b"PAR1", b"a,b\n1\n"])
def test_a_source_of_another_kind_is_a_mistake_of_the_user(sample: Sample, content: bytes) -> None:
    write_videos(sample.videos)
    source = Path(sample.file)
    source.write_bytes(content)
    assert all(str(source) in problem for problem in problems(sample, source))


@samples
def test_a_source_that_is_not_there_says_so(sample: Sample) -> None:
    write_videos(sample.videos)
    assert "no such file" in problems(sample, Path(sample.file))[0]
    wrong = Path("source.xlsx")
    wrong.write_bytes(b"PK")
    assert problems(sample, wrong) == [
        f"source.xlsx is no file of this format; allowed are {', '.join(format_of(sample.format).SUFFIXES)}"
    ]


VIDEOMME = next(sample for sample in SAMPLES if sample.format == "videomme")
MLVU = next(sample for sample in SAMPLES if sample.file == "1_plotQA.json")
CSV = next(sample for sample in SAMPLES if sample.format == "csv")


def test_nothing_is_overwritten() -> None:
    write_videos(VIDEOMME.videos)
    source = VIDEOMME.write(Path())
    imported(VIDEOMME, source)
    before = Path("studies/mydata/questions.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"study\.yaml is there already: nothing is overwritten"):
        imported(VIDEOMME, source)
    assert Path("studies/mydata/questions.jsonl").read_bytes() == before


def test_an_unknown_format_lists_the_known() -> None:
    write_videos(["a.mp4"])
    with pytest.raises(
        UserError, match=r"'video-mme' is unknown \(did you mean 'videomme'\?\); allowed are csv"
    ):
        import_study("mydata", "video-mme", Path("x"), Settings(Path("clips")))


def test_problems_come_in_the_order_of_the_source() -> None:
    write_videos(["a.mp4"])
    rows = [
        {"video": "gone.mp4", "question": "What?", "answer": "x"},
        {"video": "a.mp4", "question": "", "answer": "x"},
        {"video": "a.mp4", "question": "What?", "answer": ""},
        {"video": "a.mp4", "question": "What?", "answer": "x", "id": "q5"},
        {"video": "a.mp4", "question": "Which?", "answer": "x", "id": "q5"},
    ]
    source = CSV.write(Path(), rows)
    assert [problem.removeprefix(f"{source}:") for problem in problems(CSV, source)] == [
        "2: the video 'gone.mp4' is not in clips",
        "3: question is ''; allowed is text",
        "4: it has no answer, while others have one",
        "6: its id 'q5' is that of ours.csv:5",
    ]


def test_what_the_study_reader_refuses_is_told_at_the_rows_place() -> None:
    write_videos(["a.mp4"])
    source = CSV.write(Path(), [{"video": "a.mp4", "question": "What?", "answer": "x"}])
    (problem,) = problems(CSV, source)
    assert "are about 1 video; allowed are 2 or more" in problem
    (Path("clips") / "b.mp4").write_bytes(b"#EXTM3U\n")
    source = CSV.write(
        Path(), [{"video": name, "question": "What?", "answer": "x"} for name in ("a.mp4", "b.mp4")]
    )
    (problem,) = problems(CSV, source)
    assert problem.startswith("ours.csv:3: video clips/b.mp4 is a playlist")


def test_columns_that_are_not_known_are_listed() -> None:
    write_videos(["a.mp4"])
    source = CSV.write(Path(), [{"video": "a.mp4", "question": "What?", "anwser": "x"}])
    (problem,) = problems(CSV, source)
    assert problem.startswith("ours.csv:2: column 'anwser' is unknown (did you mean 'answer'?); allowed are")


def test_a_folder_is_read_file_by_file() -> None:
    write_videos(MLVU.videos)
    Path("json").mkdir()
    MLVU.write(Path("json"))
    write_rows(Path("json/2_needle.json"), [dict(MLVU.rows[0])])
    imported(MLVU, Path("json"))
    assert [(entry["id"], entry["video"]) for entry in written()] == [
        ("1_plotQA-1", "1_plotQA/movie_1.mp4"),
        ("1_plotQA-2", "1_plotQA/movie_2.mp4"),
        ("2_needle-1", "2_needle/movie_1.mp4"),
    ]


def test_two_names_that_end_at_one_file_are_no_certainty() -> None:
    write_videos(["1.mp4", "2.mp4"])
    rows = [{"video": name, "question": "What?", "answer": "x"} for name in ("a/1.mp4", "b/1.mp4", "a/2.mp4")]
    source = CSV.write(Path(), rows)
    assert problems(CSV, source) == [
        f"ours.csv:{line}: the video '{name}/1.mp4' is 1.mp4, and so are all of a/1.mp4, b/1.mp4"
        for line, name in ((2, "a"), (3, "b"))
    ]


# Subtitles


def test_subtitles_are_left_out_or_put_behind_the_question() -> None:
    write_videos(VIDEOMME.videos)
    folder = Path("subtitle")
    folder.mkdir()
    (folder / "fFjv93ACGo8.srt").write_text(
        '1\n00:00:00,500 --> 00:00:02,000\n<font color="white">A red\ncar.</font>\n\n'
        "2\n00:00:02,000 --> 00:00:04,000\nIt drives.\n"
    )
    result = imported(VIDEOMME, VIDEOMME.write(Path()), subtitles=folder)
    first, second = written()
    assert first["question"] == (
        "What color is the car?\nThis video's subtitles are listed below:\nA red car.\nIt drives."
    )
    assert second["question"] == "What color is the car?"
    assert result.notes == {"no subtitles in the folder": 1}


def test_subtitles_of_a_part_are_those_said_in_it() -> None:
    sample = next(sample for sample in SAMPLES if sample.file == "lvb_val.json")
    write_videos(sample.videos)
    folder = Path("subtitles")
    folder.mkdir()
    (folder / "86CxyhFV9MI_en.json").write_text(
        json.dumps(
            [
                {"timestamp": [0.0, 9.5], "text": "before"},
                {"timestamp": [9.0, 11.0], "text": "into it"},
                {"timestamp": [60.0, None], "text": "at the end"},
                {"timestamp": [70.0, 71.0], "text": "after"},
            ]
        )
    )
    (folder / "7F9IrtSHmc0_en.json").write_text(
        json.dumps([{"start": "00:00:11.000", "end": "00:01:01.500", "line": "a line"}])
    )
    imported(sample, sample.write(Path()), subtitles=folder)
    assert [entry["question"].split("below:\n")[1] for entry in written()] == [
        "into it\nat the end",
        "a line",
    ]


def test_subtitles_that_cannot_be_read_are_listed() -> None:
    write_videos(VIDEOMME.videos)
    Path("subtitle").mkdir()
    Path("subtitle/N1cdUjctpG8.srt").write_text("no times\n")
    source = VIDEOMME.write(Path())
    (problem,) = problems(VIDEOMME, source, subtitles=Path("subtitle"))
    assert problem.startswith(f"{source}: row 2: the subtitles subtitle/N1cdUjctpG8.srt are not readable")
    Path("subtitle/N1cdUjctpG8.srt").unlink()
    write_videos(CSV.videos)
    assert problems(CSV, CSV.write(Path()), subtitles=Path("subtitle")) == [
        "this source names no subtitles: leave --subtitles out"
    ]


# Baselines


def test_a_log_brings_its_answers_to_the_benchmarks_own_file() -> None:
    write_videos(VIDEOMME.videos)
    log = Path("20241128_101112_samples_videomme.jsonl")
    # Both questions have the same words: the ids tell them apart, as in logs that name no video.
    write_rows(log, [lmms_eval_line(2, None, "D", ["B"]), lmms_eval_line(1, None, "A", ["(A)"])])
    result = imported(VIDEOMME, VIDEOMME.write(Path()), baseline=log)
    assert [entry["baseline"] for entry in written()] == ["Red.", "Blue."]
    assert result.baselines == 2


WITH_SUBTITLES = (
    "log.jsonl:5: it was asked with subtitles: import the benchmark's own file with --subtitles, and without "
    "this log"
)


def test_lines_of_a_log_that_fit_no_question_are_listed() -> None:
    write_videos(VIDEOMME.videos)
    other = lmms_eval_line(1, None, "A", ["A"])
    lines = [
        lmms_eval_line(1, None, "A", ["A"]),
        lmms_eval_line(1, None, "A", ["B"]),
        lmms_eval_line(9, None, "A", ["A"]),
        other | {"input": COLORS.replace("car", "bus")},
        other | {"input": f"This video's subtitles are listed below: \nHello\n{COLORS}"},
        other | {"input": f"{COLORS}\nThink step by step."},
    ]
    log = Path("log.jsonl")
    write_rows(log, lines)
    source = VIDEOMME.write(Path())
    assert problems(VIDEOMME, source, baseline=log) == [
        "log.jsonl:2: the question was answered before in this log",
        "log.jsonl:3: several questions of the source have this text and these options",
        "log.jsonl:4: no question of the source has this text and these options",
        WITH_SUBTITLES,
        "log.jsonl:6: 'Think step by step.' follows the options: it is neither an option nor known",
    ]
    imported(VIDEOMME, source, baseline=log, skip_bad_rows=True)
    assert [entry.get("baseline") for entry in written()] == ["Red.", None], "the first line counts"


def test_the_baseline_of_mlvu_is_found_by_the_question() -> None:
    """Its task writes the question into question_id and leaves the video out."""
    write_videos(MLVU.videos)
    asked = "What color is the coat?\n(A) Yellow\n(B) Red\n(C) Green\n(D) Blue"
    line = {
        "doc_id": 0,
        "target": "A",
        "filtered_resps": ["B"],
        "doc_hash": "ab",
        "mlvu_perception_score": {
            "question_id": asked,
            "task_type": "PQA",
            "pred_answer": "B",
            "answer": "A",
        },
        "input": f"\n{asked}\nOnly give the best option.\n\nBest option: (",
    }
    write_rows(Path("log.jsonl"), [line])
    source = MLVU.write(Path(), [MLVU.rows[0], dict(MLVU.rows[1]) | {"question": "And the hat?"}])
    imported(MLVU, source, baseline=Path("log.jsonl"))
    assert [entry.get("baseline") for entry in written()] == ["Red", None]


def test_videomme_version_2_has_its_options_in_one_text() -> None:
    write_videos(VIDEOMME.videos)
    options = "\n".join(f"{letter}. option {letter}" for letter in "ABCDEFGH")
    rows = [
        videomme_row(number, video, "H") | {"options": options, "level": "2", "group_type": "logic"}
        for number, video in ((1, "fFjv93ACGo8"), (2, "N1cdUjctpG8"))
    ]
    imported(VIDEOMME, VIDEOMME.write(Path(), rows))
    assert written()[0]["answer"] == "option H"
    assert written()[0]["tags"]["group_type"] == "logic"
