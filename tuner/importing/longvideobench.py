"""LongVideoBench: `lvb_val.json`, or the Parquet form with `option0` to `option4` filled up with "N/A"."""

from __future__ import annotations

from tuner.importing.normalise import option_at, options_of
from tuner.importing.rows import Record, Row, Subtitles, UnreadableError, tags_of, text_of

SUFFIXES = (".json", ".parquet")
FILLER = "N/A"


def read(record: Record) -> Row:
    """The question of a row, its right option a number from 0. Errors: UnreadableError."""
    values = record.values
    candidates = values.get("candidates")
    if candidates is None:
        candidates = [values[f"option{place}"] for place in range(5) if f"option{place}" in values]
        while candidates and candidates[-1] == FILLER:
            candidates.pop()
        if FILLER in candidates:
            raise UnreadableError(f"{FILLER!r} stands in front of an option")
    options = options_of(candidates)
    number = values.get("correct_choice")
    start, seconds = values.get("starting_timestamp_for_subtitles"), values.get("duration")
    file = values.get("subtitle_path")
    return Row(
        place=record.place,
        id=text_of(record, "id"),
        video=text_of(record, "video_path"),
        question=text_of(record, "question"),
        options=options,
        answer=None if number is None else option_at(number, options),
        tags=tags_of(values, "question_category", "topic_category", "level", "duration_group"),
        subtitles=None
        if not isinstance(file, str) or not file
        else Subtitles(
            file,
            float(start) if isinstance(start, int | float) else 0.0,
            float(seconds) if isinstance(seconds, int | float) else None,
        ),
    )
