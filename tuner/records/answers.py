"""Answers: what the model said, kept by what it was asked, so that studies that ask the same share it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, func, select, text

from tuner.records.connected import Connected
from tuner.records.retrying import retried
from tuner.records.schema import answer_table, study_question_table
from tuner.records.values import Pair, RecordedAnswer, StoredAnswer

# Pairs as one JSON array: a list of values in the statement is compiled anew each time, and SQLite goes
# through all answers for each condition on a row of values.
_WANTED = {
    "sqlite": (
        "json_each(:pairs) AS wanted CROSS JOIN adatp_answer AS answer "
        "ON answer.prompt_id = json_extract(wanted.value, '$[0]') "
        "AND answer.fingerprint = json_extract(wanted.value, '$[1]')"
    ),
    "postgresql": (
        "json_array_elements(CAST(:pairs AS json)) AS wanted JOIN adatp_answer AS answer "
        "ON answer.prompt_id = CAST(wanted ->> 0 AS integer) AND answer.fingerprint = wanted ->> 1"
    ),
}

_SAID = answer_table.c[
    "prompt_id",
    "fingerprint",
    "text",
    "option",
    "option_logprobs",
    "logprob",
    "kept",
    "seconds",
    "peak_bytes",
]

# So many are looked for at once: each answer that is found lies in memory as a row, too.
_PAIRS_PER_QUERY = 20_000


def look_up(dialect: str) -> str:
    """The statement that finds answers, in SQLite's or PostgreSQL's words; `pairs`: see `_WANTED`."""
    return f"SELECT {', '.join(f'answer.{column.name}' for column in _SAID)} FROM {_WANTED[dialect]}"


class Answers(Connected):
    """Answers to the questions of a study."""

    def answers(self, pairs: Iterable[Pair]) -> dict[Pair, RecordedAnswer]:
        """The stored answers among those asked for."""
        return self._answers(tuple(pairs))

    @retried
    def _answers(self, pairs: Sequence[Pair]) -> dict[Pair, RecordedAnswer]:
        # Two questions of a study may be the same prompt.
        wanted: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
        for question, fingerprint in pairs:
            wanted[self._prompts[question], fingerprint].append(question)
        # In the order of the index.
        keys = sorted(wanted)
        query = text(look_up(self._engine.dialect.name)).columns(*_SAID)
        found: dict[Pair, RecordedAnswer] = {}
        with self._transaction() as connection:
            for start in range(0, len(keys), _PAIRS_PER_QUERY):
                some = json.dumps(keys[start : start + _PAIRS_PER_QUERY])
                rows = connection.execute(query, {"pairs": some}).all()
                for prompt, fingerprint, said, option, logprobs, logprob, kept, seconds, peak in rows:
                    for name in wanted[prompt, fingerprint]:
                        found[name, fingerprint] = RecordedAnswer(
                            name,
                            said,
                            option,
                            None if logprobs is None else tuple(logprobs),
                            logprob,
                            tuple(kept),
                            seconds,
                            peak,
                        )
        return found

    def _write_answers(self, connection: Connection, answers: Mapping[Pair, RecordedAnswer]) -> None:
        """The first answer to a (prompt, fingerprint) stays."""
        rows = [
            {
                "prompt_id": self._prompts[question],
                "fingerprint": fingerprint,
                "encoding_id": self._encoding,
                "text": answer.text,
                "option": answer.option,
                "option_logprobs": None if answer.option_logprobs is None else list(answer.option_logprobs),
                "logprob": answer.logprob,
                "kept": list(answer.kept),
                "seconds": answer.seconds,
                "peak_bytes": answer.peak_bytes,
            }
            for (question, fingerprint), answer in answers.items()
        ]
        # In one order: two studies that write the same answers at once would wait for each other in another.
        rows.sort(key=lambda row: (row["prompt_id"], row["fingerprint"]))
        if rows:
            connection.execute(self._insert(answer_table).on_conflict_do_nothing(), rows)

    @retried
    def stored_answers(self) -> tuple[StoredAnswer, ...]:
        """All answers to the study's questions in the order they were written, without what they say."""
        names = {prompt: name for name, prompt in reversed(self._prompts.items())}
        query = (
            select(
                answer_table.c.prompt_id,
                answer_table.c.fingerprint,
                answer_table.c.kept,
                answer_table.c.seconds,
            )
            .where(*self._of_study)
            .order_by(answer_table.c.id)
        )
        with self._transaction() as connection:
            rows = connection.execute(query)
            return tuple(StoredAnswer(names[row[0]], row[1], tuple(row[2]), row[3]) for row in rows)

    @retried
    def count_answers(self) -> int:
        """Stored answers to the study's questions."""
        query = select(func.count()).select_from(answer_table).where(*self._of_study)
        with self._transaction() as connection:
            return int(connection.execute(query).scalar_one())

    @property
    def _of_study(self) -> tuple[ColumnElement[bool], ...]:
        prompts = select(study_question_table.c.prompt_id).where(
            study_question_table.c.study_id == self._study_id
        )
        return answer_table.c.encoding_id == self._encoding, answer_table.c.prompt_id.in_(prompts)
