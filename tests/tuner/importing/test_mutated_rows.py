"""Whatever stands in a source: a study that loads, or messages with places. Never a traceback."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tuner.importing.samples import SAMPLES, Sample
from tuner.errors import UserError
from tuner.importing.importing import import_study
from tuner.importing.study_files import Settings

texts = st.text(max_size=8) | st.sampled_from(
    ["A", "B.", "(C) x", "A. a\nB. b", "..", "/", "\0", "<video>", "N/A"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def mutated(row: Any, draw: Any) -> Any:
    """The row with something in it replaced, at any depth."""
    if isinstance(row, dict) and row and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(row)))
        return {**row, key: mutated(row[key], draw)}
    if isinstance(row, list) and row and draw(st.booleans()):
        place = draw(st.integers(0, len(row) - 1))
        return [*row[:place], mutated(row[place], draw), *row[place + 1 :]]
    return draw(values)


@pytest.mark.parametrize(
    "sample",
    # Parquet has a type for each column, so that such rows cannot be written.
    [sample for sample in SAMPLES if not sample.file.endswith(".parquet")],
    ids=lambda sample: f"{sample.format} {sample.file}",
)
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_a_mutated_row_is_read_or_listed(sample: Sample, data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for video in sample.videos:
            file = folder / "clips" / video
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(video.encode())
        row = mutated(dict(sample.rows[0]), data.draw)
        row = row if isinstance(row, dict) else {"row": row}
        table = sample.file.endswith((".csv", ".tsv"))
        if table:  # every cell is a text
            row = {str(key): str(value) for key, value in row.items()}
        source = sample.write(folder, [*sample.rows, row])
        to = f"{folder}/studies/mydata"
        try:
            import_study(to, sample.format, source, Settings(folder / "clips"))
        except UserError as error:
            assert not (folder / "studies").exists()
            for problem in error.problems:
                assert re.match(re.escape(str(source)) + r"(:\d+:|: row \d+: |:)", problem), problem
        else:
            shutil.rmtree(folder / "studies")
