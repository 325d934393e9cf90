"""Records of a source: JSON, JSON Lines, Parquet, CSV and TSV, each with its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tuner.errors import UserError
from tuner.importing.rows import Problem, Record

Found = Record | Problem


def read_records(source: Path, suffixes: tuple[str, ...]) -> Iterator[Found]:
    """The records of a file, or of all files with these suffixes right in a folder, in order of name.

    Errors: UserError where there is no such file, or one that cannot be read as a whole.
    """
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if file.suffix.lower() in suffixes)
    else:
        files = [source]
    if not files:
        raise UserError(f"{source} has no file with the suffix {' or '.join(suffixes)}")
    for file in files:
        reader = _READERS.get(file.suffix.lower())
        if reader is None or file.suffix.lower() not in suffixes:
            raise UserError(f"{file} is no file of this format; allowed are {', '.join(suffixes)}")
        try:
            yield from reader(file)
        except FileNotFoundError:
            raise UserError(f"{file}: there is no such file") from None
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: this is not UTF-8 text ({error.reason})") from error


def _json(file: Path) -> Iterator[Found]:
    try:
        tree = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{file}{line}: this is not JSON: {getattr(error, 'msg', error)}") from error
    if not isinstance(tree, list):
        raise UserError(f"{file}: this holds {type(tree).__name__}; allowed is a list of objects")
    for number, value in enumerate(tree, start=1):
        yield _checked(value, f"{file}: row {number}", number, file)


def _json_lines(file: Path) -> Iterator[Found]:
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Problem(place, f"this is not JSON: {getattr(error, 'msg', error)}")
                continue
            yield _checked(value, place, number, file)


def _parquet(file: Path) -> Iterator[Found]:
    import pyarrow
    import pyarrow.parquet

    if not file.is_file():
        raise FileNotFoundError
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for value in batch.to_pylist():
                    number += 1
                    yield _checked(value, f"{file}: row {number}", number, file)
    except pyarrow.ArrowException as error:
        raise UserError(f"{file}: this is not Parquet: {' '.join(str(error).split())}") from error


def _table(file: Path, delimiter: str) -> Iterator[Found]:
    csv.field_size_limit(1 << 24)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        # strict: a quote that is not closed would swallow the rest of the file.
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        names, before = None, 0
        try:
            for row in rows:
                place, before = f"{file}:{before + 1}", rows.line_num
                if not any(cell.strip() for cell in row):
                    continue
                if names is None:
                    names = [name.strip() for name in row]
                    if len(set(names)) < len(names):
                        raise UserError(f"{place}: a column's name occurs twice")
                elif len(row) != len(names):
                    yield Problem(place, f"{len(row)} columns; the first line names {len(names)}")
                else:
                    yield _checked(dict(zip(names, row, strict=True)), place, rows.line_num, file)
        except csv.Error as error:
            raise UserError(f"{file}:{rows.line_num}: this is no table: {error}") from error


def _csv(file: Path) -> Iterator[Found]:
    return _table(file, ",")


def _tsv(file: Path) -> Iterator[Found]:
    return _table(file, "\t")


def _checked(value: Any, place: str, number: int, file: Path) -> Found:
    if not isinstance(value, dict):
        return Problem(place, f"{value!r} is no object")
    return Record(value, place, number, file.stem)


_READERS: dict[str, Callable[[Path], Iterator[Found]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _tsv,
}
