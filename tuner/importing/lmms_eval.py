"""lmms-eval's log of samples (`--log_samples`): questions as they were asked, with the baseline's answers.

A log has neither the options nor, of most tasks, the video: the prompt's option lines and the video that the
task's metric names are read. Other logs are joined to a benchmark's own file by `with_baseline`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.importing.normalise import answer_to_prompt, split_prompt
from tuner.importing.rows import Problem, Record, Row, UnreadableError, tags_of, text_of
from tuner.importing.sources import read_records
from tuner.importing.subtitles import HEADING

SUFFIXES = (".jsonl",)

_VIDEO = ("videoID", "video_name", "video_path", "video", "video_id")
_ID = ("question_id", "id")
_NO_TAGS = {*_VIDEO, *_ID, "answer", "pred_answer", "parsed_pred", "pred", "score"}
_NO_METRIC = ("doc", "arguments", "token_counts", "submission")

UNCLEAR = "baseline answer left out, as it names no option with certainty"


def read(record: Record) -> Row:
    """The question of a line. Errors: UnreadableError, also where the log names no video."""
    question, options = _asked(record)
    metric = _metric(record.values)
    video = next((str(metric[key]) for key in _VIDEO if metric.get(key)), None)
    if video is None:
        raise UnreadableError(
            "the log names no video for it: import the benchmark's own file, with --baseline and this log"
        )
    baseline, notes = _response(record, options)
    return Row(
        place=record.place,
        id=_identifiers(record)[0],
        video=video,
        question=question,
        options=options,
        answer=answer_to_prompt(metric.get("answer", record.values.get("target")), options),
        tags=tags_of(metric, *(key for key in metric if key not in _NO_TAGS)),
        baseline=baseline,
        notes=notes,
    )


def with_baseline(rows: Sequence[Row], log: Path) -> Iterator[Row | Problem]:
    """The rows with the answers of a log about them; a log's line that fits no row, or several, by its place.

    A line fits by question and options, and where several rows have these, by id or video too.
    """
    known = defaultdict[tuple[str, ...], list[int]](list)
    for number, row in enumerate(rows):
        known[_key(row.question, row.options)].append(number)
    found: dict[int, Row] = {}
    for record in read_records(log, SUFFIXES):
        if isinstance(record, Problem):
            yield record
            continue
        try:
            question, options = _asked(record)
            number = _fitting(record, rows, known.get(_key(question, options), []))
            baseline, notes = _response(record, rows[number].options)
        except UnreadableError as error:
            yield Problem(record.place, str(error))
            continue
        if number in found:
            yield Problem(record.place, "the question was answered before in this log")
            continue
        found[number] = replace(rows[number], baseline=baseline, notes=rows[number].notes + notes)
    for number, row in enumerate(rows):
        yield found.get(number, row)


def _fitting(record: Record, rows: Sequence[Row], numbers: Sequence[int]) -> int:
    if not numbers:
        raise UnreadableError("no question of the source has this text and these options")
    if len(numbers) > 1:
        identifiers = _identifiers(record)
        video = next((str(value) for key, value in _metric(record.values).items() if key in _VIDEO), None)
        numbers = [
            number for number in numbers if rows[number].id in identifiers or rows[number].video == video
        ]
    if len(numbers) != 1:
        raise UnreadableError("several questions of the source have this text and these options")
    return numbers[0]


def _asked(record: Record) -> tuple[str, tuple[str, ...] | None]:
    prompt = text_of(record, "input")
    if HEADING in prompt:
        raise UnreadableError(
            "it was asked with subtitles: import the benchmark's own file with --subtitles, "
            "and without this log"
        )
    return split_prompt(prompt)


def _metric(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the task's metrics say of the question, all together."""
    together: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key not in _NO_METRIC:
            together |= value
    return together


def _identifiers(record: Record) -> list[str]:
    """The question's id, then others that may be one. MLVU's task writes the question's text into its id."""
    metric = _metric(record.values)
    named = [str(metric[key]) for key in _ID if metric.get(key)]
    own = [name for name in named if len(name) <= 100 and "\n" not in name and " " not in name]
    return [*own, f"{record.stem}-{record.values.get('doc_id', record.number)}"]


def _response(record: Record, options: Sequence[str] | None) -> tuple[str | None, tuple[str, ...]]:
    """The model's own words as an answer. What a task's metric reads out of them is not taken: some tasks
    draw an option by chance where they find none.
    """
    value = record.values.get("filtered_resps")
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise UnreadableError(f"filtered_resps is {value!r}; allowed is one text")
    try:
        return answer_to_prompt(value, options), ()
    except UnreadableError:
        return None, (UNCLEAR,)


def _key(question: str, options: Iterable[str] | None) -> tuple[str, ...]:
    """By which a question is known again: the same texts, whatever the spaces."""
    return tuple(" ".join(text.split()) for text in (question, *(options or ())))
