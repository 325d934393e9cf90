"""VLMEvalKit's TSV of VideoMME and MLVU, with or without the column `prediction`: the baseline's answers."""

from __future__ import annotations

import ast
from pathlib import PurePosixPath

from tuner.importing.normalise import answer_of, options_of
from tuner.importing.rows import Record, Row, Subtitles, UnreadableError, tags_of, text_of

SUFFIXES = (".tsv",)


def read(record: Record) -> Row:
    """The question of a line. Errors: UnreadableError."""
    values = record.values
    options = None
    if written := values.get("candidates"):
        try:
            options = options_of(ast.literal_eval(written))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise UnreadableError(f"candidates is {written!r}; allowed is a list of texts") from None
    if values.get("video_path"):
        video = text_of(record, "video_path")
    else:
        video = str(PurePosixPath(values.get("prefix") or "") / text_of(record, "video"))
    notes: tuple[str, ...] = ()
    baseline = None
    if values.get("prediction"):
        try:
            baseline = answer_of(values["prediction"], options)
        except UnreadableError:
            notes = ("prediction left out, as it names no option with certainty",)
    return Row(
        place=record.place,
        id=f"{record.stem}-{text_of(record, 'index')}",
        video=video,
        question=text_of(record, "question"),
        options=options,
        answer=answer_of(values.get("answer"), options),
        baseline=baseline,
        tags=tags_of(values, "duration", "domain", "sub_category", "task_type")
        if "domain" in values  # of MLVU the duration is in seconds
        else tags_of(values, "task_type"),
        subtitles=Subtitles(values["subtitle_path"]) if values.get("subtitle_path") else None,
        notes=notes,
    )
