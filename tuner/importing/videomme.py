"""VideoMME: Parquet with `videoID`, `question`, `options` ("A. Red."), `answer` (a letter).

Video-MME-v2 has its options in one text. Its scoring in groups of four questions is not taken over: every
question counts by itself.
"""

from __future__ import annotations

from tuner.importing.normalise import answer_of, options_of
from tuner.importing.rows import Record, Row, Subtitles, tags_of, text_of

SUFFIXES = (".parquet",)


def read(record: Record) -> Row:
    """The question of a row. Errors: UnreadableError."""
    options = options_of(record.values.get("options"))
    video = text_of(record, "videoID")
    return Row(
        place=record.place,
        id=text_of(record, "question_id"),
        video=video,
        question=text_of(record, "question"),
        options=options,
        answer=answer_of(record.values.get("answer"), options),
        tags=tags_of(record.values, "duration", "domain", "sub_category", "task_type", "group_type", "level"),
        subtitles=Subtitles(f"{video}.srt"),
    )
