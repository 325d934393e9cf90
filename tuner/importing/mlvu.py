"""MLVU: one JSON file for each task, the answer a text; or the hub's form MLVU_dev, the answer a letter.

The hub's form repeats the options in the question.
"""

from __future__ import annotations

from tuner.importing.normalise import answer_of, options_of, split_prompt
from tuner.importing.rows import Record, Row, UnreadableError, tags_of, text_of

SUFFIXES = (".json", ".parquet")


def read(record: Record) -> Row:
    """The question of a row. Errors: UnreadableError."""
    values = record.values
    hub = "video_name" in values
    if not values.get("candidates"):
        raise UnreadableError("it has no candidates: MLVU lets another model judge free answers")
    options = options_of(values["candidates"])
    question, repeated = split_prompt(text_of(record, "question"))
    if repeated not in (None, options):
        raise UnreadableError("the options in the question are not those of candidates")
    return Row(
        place=record.place,
        id=text_of(record, "question_id") if hub else f"{record.stem}-{record.number}",
        # In the publishers' folders the videos of a task lie in a folder with the name of its file.
        video=text_of(record, "video_name") if hub else f"{record.stem}/{text_of(record, 'video')}",
        question=question,
        options=options,
        answer=answer_of(values.get("answer"), options),
        tags=tags_of(values, "question_type", "task_type"),
    )
