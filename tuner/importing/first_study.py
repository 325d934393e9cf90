"""A first study of a folder of videos: with the user's questions, or label-free with the same for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import VideoError
from pipeline.video import Decoder
from tuner.errors import UserError
from tuner.importing.study_files import Settings, study_folder, write_study
from tuner.study import Study
from tuner.study.parsing import Mistakes, parse_questions

PROMPTS = (
    "What is the main subject of this video? Answer in one or two words.",
    "Where does this video take place? Answer in one or two words.",
    "What is happening in this video? Answer in one or two words.",
    "How many people can be seen in this video? Answer with a number.",
)
"""Asked about each video where the user gives none. They ask for few words, because without labels an answer
counts where it has the unpruned model's words.
"""


@dataclass(frozen=True)
class Created:
    """A study that was written, and the files of its folder that are no readable videos, a sentence each."""

    study: Study
    left_out: tuple[str, ...]


def create_study(
    name: str,
    settings: Settings,
    *,
    questions: Path | None = None,
    prompts: Sequence[str] = (),
    looked_at: Callable[[int, int], None] = lambda done, files: None,
) -> Created:
    """Makes the study `name` of the videos in a folder.

    questions: a file in the format of questions.jsonl, which is copied. Without it each of the prompts is
    asked about each video that can be read, and there are no labels. looked_at: is told after each file how
    many of how many were looked at. Errors: UserError with everything that is wrong; nothing is written then.
    """
    folder = study_folder(name)
    if not settings.videos.is_dir():
        raise UserError(f"{settings.videos} is no folder; --videos names the folder that holds the videos")
    if questions is not None:
        if prompts:
            raise UserError("--questions and --prompt both say what is asked; allowed is one of them")
        mistakes = Mistakes()
        parsed = parse_questions(questions, mistakes)
        if mistakes.found or not parsed:
            raise UserError(mistakes.found or f"{questions}: there is no question in it")
        lines = [sample.keys.model_dump(exclude_none=True, exclude_defaults=True) for sample in parsed]
        places = [f"{questions}:{sample.line}" for sample in parsed]
        return Created(write_study(folder, settings, lines, places, ""), ())
    asked = [prompt.strip() for prompt in prompts or PROMPTS]
    if not all(asked) or len(set(asked)) < len(asked):
        raise UserError("a --prompt is empty or given twice; allowed are different questions")
    videos, left_out = _videos(settings.videos, looked_at)
    if not videos:
        raise UserError([*left_out, f"{settings.videos} has no video that can be read"])
    lines = [
        {"id": f"{video}-{number}", "video": video, "question": prompt}
        for video in videos
        for number, prompt in enumerate(asked, start=1)
    ]
    places = [str(settings.videos / str(line["video"])) for line in lines]
    return Created(write_study(folder, settings, lines, places, "Label-free."), tuple(left_out))


def _videos(folder: Path, looked_at: Callable[[int, int], None]) -> tuple[list[str], list[str]]:
    """Names of the videos that can be read, and what is wrong with the other files, hidden ones aside."""
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    videos, wrong = [], []
    with Decoder() as decoder:
        for done, file in enumerate(files, start=1):
            try:
                decoder.probe(file)
                videos.append(file.relative_to(folder).as_posix())
            except VideoError as error:
                wrong.append(str(error))
            looked_at(done, len(files))
    return videos, wrong
