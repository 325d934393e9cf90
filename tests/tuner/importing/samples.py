"""Sources in the shapes in which they are published, made up; and the study that each becomes."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Question = Mapping[str, Any]
"""A line of questions.jsonl."""


@dataclass(frozen=True)
class Sample:
    """`rows[i]` is the question `questions[i]`; `broken` is a row that cannot be read, for `reason`."""

    format: str
    file: str
    rows: Sequence[Mapping[str, Any]]
    questions: Sequence[Question]
    broken: Mapping[str, Any]
    reason: str
    videos: Sequence[str] = field(default_factory=list)
    """Files below the folder of videos."""

    def write(self, folder: Path, rows: Sequence[Mapping[str, Any]] | None = None) -> Path:
        """The source, in a folder."""
        file = folder / self.file
        write_rows(file, self.rows if rows is None else rows)
        return file

    def place(self, file: Path, number: int) -> str:
        """Where the row of this number, from 0, stands."""
        if file.suffix in (".json", ".parquet"):
            return f"{file}: row {number + 1}"
        return f"{file}:{number + (2 if file.suffix in ('.csv', '.tsv') else 1)}"


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """In the format that the suffix says."""
    if file.suffix == ".json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with file.open("w", encoding="utf-8", newline="") as opened:
            delimiter = "\t" if file.suffix == ".tsv" else ","
            writer = csv.DictWriter(opened, names, delimiter=delimiter, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


# lmms-eval asks VideoMME so, with and without subtitles.
PROMPT = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option.\n{}\nThe best answer is:"
)
COLORS = "What color is the car?\nA. Red.\nB. Blue.\nC. Green.\nD. White."


def lmms_eval_line(number: int, video: str | None, answer: str, response: Any) -> dict[str, Any]:
    """A line of `{date}_samples_videomme.jsonl`; older logs name no video."""
    metric = {
        "question_id": f"{number:03d}-1",
        "duration": "short",
        "category": "Knowledge",
        "sub_category": "Geography",
        "task_category": "Attribute Perception",
        "pred_answer": "A",
        "answer": answer,
        "score": 1.0,
    }
    return {
        "doc_id": number,
        "target": answer,
        "filtered_resps": response,
        "doc_hash": "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b",
        "token_counts": [{"input_tokens": 6300, "output_tokens": 2}],
        "videomme_perception_score": metric | ({} if video is None else {"videoID": video}),
        "input": PROMPT.format(COLORS),
    }


def videomme_row(number: int, video: str, answer: str) -> dict[str, Any]:
    """A row of VideoMME's Parquet file."""
    return {
        "video_id": f"{number:03d}",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Geography",
        "url": f"https://www.youtube.com/watch?v={video}",
        "videoID": video,
        "question_id": f"{number:03d}-1",
        "task_type": "Attribute Perception",
        "question": "What color is the car?",
        "options": ["A. Red.", "B. Blue.", "C. Green.", "D. White."],
        "answer": answer,
    }


_VIDEOMME_TAGS = {
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Geography",
    "task_type": "Attribute Perception",
}
_VIDEOMME_OPTIONS = ["Red.", "Blue.", "Green.", "White."]
_VIDEOMME_QUESTIONS = [
    {
        "id": f"{number:03d}-1",
        "video": f"data/{video}.mp4",
        "question": "What color is the car?",
        "options": _VIDEOMME_OPTIONS,
        "answer": answer,
        "tags": _VIDEOMME_TAGS,
    }
    for number, video, answer in ((1, "fFjv93ACGo8", "Red."), (2, "N1cdUjctpG8", "White."))
]

SAMPLES = [
    Sample(
        format="lmms-eval",
        file="20261128_101112_samples_videomme.jsonl",
        # Older logs nest the answer one list deeper.
        rows=[
            lmms_eval_line(1, "fFjv93ACGo8", "A", ["A"]),
            lmms_eval_line(2, "N1cdUjctpG8", "D", [["B."]]),
            lmms_eval_line(3, "N1cdUjctpG8", "D", ["I see a car and a bus."]),
        ],
        videos=["fFjv93ACGo8.mp4", "N1cdUjctpG8.mkv"],
        questions=[
            {
                "id": f"{number:03d}-1",
                "video": video,
                "question": "What color is the car?",
                "options": _VIDEOMME_OPTIONS,
                "answer": answer,
                **({} if baseline is None else {"baseline": baseline}),
                "tags": {
                    "duration": "short",
                    "category": "Knowledge",
                    "sub_category": "Geography",
                    "task_category": "Attribute Perception",
                },
            }
            for number, video, answer, baseline in (
                (1, "fFjv93ACGo8.mp4", "Red.", "Red."),
                (2, "N1cdUjctpG8.mkv", "White.", "Blue."),
                (3, "N1cdUjctpG8.mkv", "White.", None),
            )
        ],
        broken=lmms_eval_line(4, None, "A", ["A"]),
        reason="the log names no video for it: import the benchmark's own file, with --baseline and this log",
    ),
    Sample(
        format="videomme",
        file="test-00000-of-00001.parquet",
        rows=[videomme_row(1, "fFjv93ACGo8", "A"), videomme_row(2, "N1cdUjctpG8", "D")],
        videos=["data/fFjv93ACGo8.mp4", "data/N1cdUjctpG8.mp4"],
        questions=_VIDEOMME_QUESTIONS,
        broken=videomme_row(3, "fFjv93ACGo8", "E"),
        reason="the answer 'E' is none of the options: 'Red.', 'Blue.', 'Green.', 'White.'",
    ),
    Sample(  # one file for each task, the answer a text
        format="mlvu",
        file="1_plotQA.json",
        rows=[
            {
                "video": f"movie_{number}.mp4",
                "duration": 246,
                "question": "What color is the coat?",
                "candidates": ["Yellow", "Red", "Green", "Blue"],
                "answer": answer,
                "question_type": "plotQA",
            }
            for number, answer in ((1, "Yellow"), (2, "Blue"))
        ],
        videos=["1_plotQA/movie_1.mp4", "1_plotQA/movie_2.mp4", "2_needle/movie_1.mp4"],
        questions=[
            {
                "id": f"1_plotQA-{number}",
                "video": f"1_plotQA/movie_{number}.mp4",
                "question": "What color is the coat?",
                "options": ["Yellow", "Red", "Green", "Blue"],
                "answer": answer,
                "tags": {"question_type": "plotQA"},
            }
            for number, answer in ((1, "Yellow"), (2, "Blue"))
        ],
        broken={
            "video": "movie_1.mp4",
            "duration": 246,
            "question": "What happens?",
            "answer": "A man walks through the rain.",
            "scoring_points": ["rain"],
            "question_type": "summary",
        },
        reason="it has no candidates: MLVU lets another model judge free answers",
    ),
    Sample(  # the hub's form MLVU_dev, the answer a letter
        format="mlvu",
        file="mlvu_dev.parquet",
        rows=[
            {
                "video_name": f"movie_{number}.mp4",
                "duration": 246.0,
                "question": "What color is the coat?\n(A) Yellow\n(B) Red\n(C) Green\n(D) Blue",
                "candidates": ["Yellow", "Red", "Green", "Blue"],
                "answer": answer,
                "task_type": "PQA",
                "question_id": f"PQA_{number}",
            }
            for number, answer in ((1, "A"), (2, "D"))
        ],
        videos=["movie_1.mp4", "movie_2.mp4"],
        questions=[
            {
                "id": f"PQA_{number}",
                "video": f"movie_{number}.mp4",
                "question": "What color is the coat?",
                "options": ["Yellow", "Red", "Green", "Blue"],
                "answer": answer,
                "tags": {"task_type": "PQA"},
            }
            for number, answer in ((1, "Yellow"), (2, "Blue"))
        ],
        broken={
            "video_name": "movie_1.mp4",
            "duration": 246.0,
            "question": "What color is the coat?\n(A) Blue\n(B) Red",
            "candidates": ["Red", "Blue"],
            "answer": "A",
            "task_type": "PQA",
            "question_id": "PQA_3",
        },
        reason="the options in the question are not those of candidates",
    ),
    Sample(
        format="longvideobench",
        file="lvb_val.json",
        rows=[
            {
                "video_id": video,
                "question": "On the desk stands a lamp. What color is it?",
                "question_wo_referring_query": "What color is it?",
                "candidates": ["Red", "Blue", "Green", "White", "Black"],
                "correct_choice": choice,
                "position": [264, 1779],
                "topic_category": "KS-Knowledge-STEM",
                "question_category": "S2A",
                "level": "L1-Perception",
                "id": f"{video}_0",
                "video_path": f"{video}.mp4",
                "subtitle_path": f"{video}_en.json",
                "duration_group": 60,
                "starting_timestamp_for_subtitles": 10,
                "duration": 55.5,
                "view_count": 1200,
            }
            for video, choice in (("86CxyhFV9MI", 0), ("7F9IrtSHmc0", 4))
        ],
        videos=["videos/86CxyhFV9MI.mp4", "videos/7F9IrtSHmc0.mp4"],
        questions=[
            {
                "id": f"{video}_0",
                "video": f"videos/{video}.mp4",
                "question": "On the desk stands a lamp. What color is it?",
                "options": ["Red", "Blue", "Green", "White", "Black"],
                "answer": answer,
                "tags": {
                    "question_category": "S2A",
                    "topic_category": "KS-Knowledge-STEM",
                    "level": "L1-Perception",
                    "duration_group": "60",
                },
            }
            for video, answer in (("86CxyhFV9MI", "Red"), ("7F9IrtSHmc0", "Black"))
        ],
        broken={
            "id": "86CxyhFV9MI_1",
            "video_path": "86CxyhFV9MI.mp4",
            "question": "What is seen?",
            "candidates": ["Red", "Blue"],
            "correct_choice": 2,
        },
        reason="the right option's number is 2; allowed is 0 to 1 here",
    ),
    Sample(
        format="longvideobench",
        file="validation-00000-of-00001.parquet",
        rows=[
            {
                "video_id": video,
                "question": "On the desk stands a lamp. What color is it?",
                "option0": "Red",
                "option1": "Blue",
                "option2": "Green",
                "option3": "N/A",
                "option4": "N/A",
                "correct_choice": choice,
                "question_category": "S2A",
                "id": f"{video}_0",
                "video_path": f"{video}.mp4",
                "subtitle_path": f"{video}_en.json",
                "duration_group": 60,
                "starting_timestamp_for_subtitles": 10.0,
                "duration": 55.5,
            }
            for video, choice in (("86CxyhFV9MI", 0), ("7F9IrtSHmc0", 2))
        ],
        videos=["86CxyhFV9MI.mp4", "7F9IrtSHmc0.mp4"],
        questions=[
            {
                "id": f"{video}_0",
                "video": f"{video}.mp4",
                "question": "On the desk stands a lamp. What color is it?",
                "options": ["Red", "Blue", "Green"],
                "answer": answer,
                "tags": {"question_category": "S2A", "duration_group": "60"},
            }
            for video, answer in (("86CxyhFV9MI", "Red"), ("7F9IrtSHmc0", "Green"))
        ],
        broken={
            "id": "86CxyhFV9MI_1",
            "video_path": "86CxyhFV9MI.mp4",
            "question": "What is seen?",
            "option0": "Red",
            "option1": "N/A",
            "option2": "Blue",
            "option3": "N/A",
            "option4": "N/A",
            "correct_choice": 0,
        },
        reason="'N/A' stands in front of an option",
    ),
    Sample(
        format="llama-factory",
        file="mllm_video_demo.json",
        rows=[
            {
                "messages": [
                    {"content": "<video>What is she doing?", "role": "user"},
                    {"content": "She is cooking.", "role": "assistant"},
                ],
                "videos": [f"mllm_demo_data/{number}.mp4"],
            }
            for number in (1, 2)
        ],
        videos=["mllm_demo_data/1.mp4", "mllm_demo_data/2.mp4"],
        questions=[
            {
                "id": f"mllm_video_demo-{number}",
                "video": f"mllm_demo_data/{number}.mp4",
                "question": "What is she doing?",
                "answer": "She is cooking.",
            }
            for number in (1, 2)
        ],
        broken={
            "messages": [
                {"content": "<video><video>What changed?", "role": "user"},
                {"content": "Nothing.", "role": "assistant"},
            ],
            "videos": ["mllm_demo_data/1.mp4", "mllm_demo_data/2.mp4"],
        },
        reason="several videos or images are asked about; allowed is one video",
    ),
    Sample(  # LLaVA-Video-178K
        format="llama-factory",
        file="0_30_s_academic_mc_v0_1.json",
        rows=[
            {
                "id": "1",
                "conversations": [
                    {
                        "from": "human",
                        "value": "<image>\nWhat is the color of the pan?\nA. Black\nB. Silver\nC. Red\n"
                        "Please provide your answer by stating the letter followed by the full option.",
                    },
                    {"from": "gpt", "value": answer},
                    {"from": "human", "value": "And the lid?\nA. Black\nB. Red\nPlease respond with only the "
                    "letter of the correct answer."},
                    {"from": "gpt", "value": "A."},
                ],
                "data_source": "0_30_s_academic_v0_1",
                "video": f"academic_source/youcook2/{number}.mp4",
            }
            for number, answer in ((1, "A. Black."), (2, "C. Red."))
        ],
        videos=["youcook2/1.mp4", "youcook2/2.mp4"],
        questions=[
            {
                "id": f"0_30_s_academic_mc_v0_1-{number}",
                "video": f"youcook2/{number}.mp4",
                "question": "What is the color of the pan?",
                "options": ["Black", "Silver", "Red"],
                "answer": answer,
                "tags": {"data_source": "0_30_s_academic_v0_1"},
            }
            for number, answer in ((1, "Black"), (2, "Red"))
        ],
        broken={
            "id": "3",
            "conversations": [
                {"from": "human", "value": "<image>\nWhich? A. Black B. Silver"},
                {"from": "gpt", "value": "B"},
            ],
            "video": "academic_source/youcook2/1.mp4",
        },
        reason="the answer is 'B', but there are no options",
    ),
    Sample(
        format="csv",
        file="ours.csv",
        rows=[
            {
                "video": "a.mp4",
                "question": "What color, in daylight?",
                "option_a": "red",
                "option_b": "blue",
                "option_c": "",
                "answer": "B",
                "baseline": "red",
                "tag_place": "street",
            },
            {
                "video": "b.mp4",
                "question": 'Which "one"?\nSay it.',
                "option_a": "red",
                "option_b": "blue",
                "option_c": "green",
                "answer": "Green.",
                "baseline": "",
                "tag_place": "",
            },
        ],
        videos=["a.mp4", "b.mp4"],
        questions=[
            {
                "id": "q1",
                "video": "a.mp4",
                "question": "What color, in daylight?",
                "options": ["red", "blue"],
                "answer": "blue",
                "baseline": "red",
                "tags": {"place": "street"},
            },
            {
                "id": "q2",
                "video": "b.mp4",
                "question": 'Which "one"?\nSay it.',
                "options": ["red", "blue", "green"],
                "answer": "green",
            },
        ],
        broken={"video": "a.mp4", "question": "What?", "option_a": "red", "option_c": "blue", "answer": "A"},
        reason="option_c is filled, but not all options in front of it",
    ),
    Sample(
        format="vlmevalkit",
        file="Video-MME.tsv",
        rows=[
            {
                "index": number,
                "video": video,
                "video_path": f"./video/{video}.mp4",
                "duration": "short",
                "domain": "Knowledge",
                "candidates": "['A. Red.', \"B. Bob's.\"]",
                "sub_category": "Geography",
                "task_type": "Attribute Perception",
                "subtitle_path": f"./subtitle/{video}.srt",
                "question": "Whose car is it?",
                "answer": answer,
                "prediction": prediction,
            }
            for number, video, answer, prediction in (
                (0, "fFjv93ACGo8", "A", "B"),
                (1, "N1cdUjctpG8", "B", "I cannot tell."),
            )
        ],
        videos=["video/fFjv93ACGo8.mp4", "video/N1cdUjctpG8.mp4"],
        questions=[
            {
                "id": f"Video-MME-{number}",
                "video": f"video/{video}.mp4",
                "question": "Whose car is it?",
                "options": ["Red.", "Bob's."],
                "answer": answer,
                **({} if baseline is None else {"baseline": baseline}),
                "tags": _VIDEOMME_TAGS,
            }
            for number, video, answer, baseline in (
                (0, "fFjv93ACGo8", "Red.", "Bob's."),
                (1, "N1cdUjctpG8", "Bob's.", None),
            )
        ],
        broken={
            "index": 2,
            "video": "fFjv93ACGo8",
            "candidates": "__import__('os').getcwd()",
            "question": "What?",
            "answer": "A",
        },
        reason="candidates is \"__import__('os').getcwd()\"; allowed is a list of texts",
    ),
]  # fmt: skip
