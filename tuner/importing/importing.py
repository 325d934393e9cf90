"""An import: records to rows, rows to a study, or every problem with its place and nothing written."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import VideoError
from pipeline.video import check_file
from tuner.errors import UserError
from tuner.importing.formats import format_of
from tuner.importing.lmms_eval import with_baseline
from tuner.importing.rows import Problem, Row, UnreadableError
from tuner.importing.sources import read_records
from tuner.importing.study_files import Settings, study_folder, write_study
from tuner.importing.subtitles import HEADING, subtitles_text
from tuner.importing.videos import Videos
from tuner.study import Study

SKIP_HINT = "--skip-bad-rows leaves them out"


@dataclass(frozen=True)
class Imported:
    """A study that was written, and what was not taken over."""

    study: Study
    left_out: tuple[str, ...]
    """Rows with their places and reasons."""
    notes: Mapping[str, int]
    """What was left out of rows, and of how many."""
    baselines: int
    """Questions with an answer of the unpruned model by another program."""


def import_study(
    name: str,
    format_name: str,
    source: Path,
    settings: Settings,
    *,
    subtitles: Path | None = None,
    baseline: Path | None = None,
    skip_bad_rows: bool = False,
) -> Imported:
    """Makes the study `name` of a source in one of FORMATS.

    subtitles: folder of the subtitles that go into the questions. baseline: an lmms-eval log about the same
    questions. Errors: UserError with all rows that cannot be read with certainty, unless `skip_bad_rows`, and
    where none is left.
    """
    folder = study_folder(name)
    importer = format_of(format_name)
    if subtitles is not None and not subtitles.is_dir():
        raise UserError(f"{subtitles} is no folder; --subtitles names the folder that holds the subtitles")
    videos = Videos(settings.videos)
    places: dict[str, int] = {}  # in the order of the source
    problems: list[Problem] = []
    rows: list[Row] = []
    for record in read_records(source, importer.SUFFIXES):
        places[record.place] = len(places)
        if isinstance(record, Problem):
            problems.append(record)
            continue
        try:
            rows.append(importer.read(record))
        except UnreadableError as error:
            problems.append(Problem(record.place, str(error)))
    if baseline is not None:
        joined = list(with_baseline(rows, baseline))
        problems += [row for row in joined if isinstance(row, Problem)]
        rows = [row for row in joined if isinstance(row, Row)]
    rows = _with_files(rows, videos, settings.videos, problems)
    if subtitles is not None:
        rows = _with_subtitles(rows, subtitles, problems)
    rows = _all_or_none(_distinct(rows, problems), problems)
    # Those of a baseline's log come last, in its order.
    problems.sort(key=lambda problem: places.get(problem.place, len(places)))
    listed = [f"{place}: {sentence}" for place, sentence in problems]
    if listed and not skip_bad_rows:
        raise UserError(listed, SKIP_HINT)
    if not rows:
        raise UserError([*listed, f"{source} has no question that can be read"])
    study = write_study(
        folder,
        settings,
        [_line(row) for row in rows],
        [row.place for row in rows],
        f"Imported from {source.name} ({format_name}).",
    )
    notes = Counter(note for row in rows for note in row.notes)
    return Imported(study, tuple(listed), notes, sum(row.baseline is not None for row in rows))


def _with_files(rows: list[Row], videos: Videos, folder: Path, problems: list[Problem]) -> list[Row]:
    """The rows with the files of their videos. Two names for one file may be two videos, one of them gone."""
    found: list[tuple[Row, str]] = []
    names = defaultdict[str, set[str]](set)
    checked: dict[str, str | None] = {}
    for row in rows:
        try:
            file = videos.find(row.video)
            if file not in checked:
                checked[file] = _wrong(folder / file)
            if reason := checked[file]:
                raise UnreadableError(reason)
        except UnreadableError as error:
            problems.append(Problem(row.place, str(error)))
            continue
        names[file].add(row.video)
        found.append((row, file))
    kept = []
    for row, file in found:
        if len(names[file]) > 1:
            listed = ", ".join(sorted(names[file]))
            problems.append(
                Problem(row.place, f"the video {row.video!r} is {file}, and so are all of {listed}")
            )
            continue
        kept.append(replace(row, video=file))
    return kept


def _wrong(file: Path) -> str | None:
    try:
        check_file(file)
    except VideoError as error:
        return str(error)
    return None


def _with_subtitles(rows: list[Row], folder: Path, problems: list[Problem]) -> list[Row]:
    if rows and all(row.subtitles is None for row in rows):
        raise UserError("this source names no subtitles: leave --subtitles out")
    with_them = []
    for row in rows:
        try:
            text = None if row.subtitles is None else subtitles_text(folder, row.subtitles)
        except UnreadableError as error:
            problems.append(Problem(row.place, str(error)))
            continue
        if not text:
            row = replace(row, notes=(*row.notes, "no subtitles in the folder"))
        else:
            # Behind the question: the text encoder, which says what in the video is asked about, reads the
            # first 64 tokens alone.
            row = replace(row, question=f"{row.question}\n{HEADING}\n{text}")
        with_them.append(row)
    return with_them


def _distinct(rows: list[Row], problems: list[Problem]) -> list[Row]:
    """Rows with ids of their own, made where the source has none."""
    first: dict[str, str] = {}
    kept = []
    for number, row in enumerate(rows, start=1):
        identifier = row.id or f"q{number}"
        if identifier in first:
            problems.append(Problem(row.place, f"its id {identifier!r} is that of {first[identifier]}"))
            continue
        first[identifier] = row.place
        kept.append(replace(row, id=identifier))
    return kept


def _all_or_none(rows: list[Row], problems: list[Problem]) -> list[Row]:
    without = [row for row in rows if row.answer is None]
    if len(without) in (0, len(rows)):
        return rows
    problems += [Problem(row.place, "it has no answer, while others have one") for row in without]
    return [row for row in rows if row.answer is not None]


def _line(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {"id": row.id, "video": row.video, "question": row.question}
    if row.options is not None:
        line["options"] = list(row.options)
    if row.answer is not None:
        line["answer"] = row.answer
    if row.baseline is not None:
        line["baseline"] = row.baseline
    if row.tags:
        line["tags"] = dict(row.tags)
    return line
