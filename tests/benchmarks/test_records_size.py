"""The benchmark of the records on a small study: that it fills and measures what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import records_size
from tuner.records.store import Store

pytestmark = pytest.mark.quick


def test_a_small_study_is_written_and_measured(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'records.db'}"
    records_size.fill(url, trials=4, questions=30)
    with Store.open(url, create=False) as store:
        store.require("fake")
        assert [trial.number for trial in store.trials() if trial.outcome is not None] == [0, 1, 2, 3]
        assert store.model_use()["trial"].answers == 4 * 30
        # The unpruned model's, too, and those of three configurations on held-out videos, some of which
        # lose nothing to the pruning.
        assert 4 * 30 + 60 < store.count_answers() <= 4 * 30 + 60 + 3 * 30
    assert records_size.look_up(url)["median, ms"] > 0
    found = records_size.summarised(url)
    assert found["seconds"] > 0
    assert found["MiB"] >= found["MiB before"] > 0
