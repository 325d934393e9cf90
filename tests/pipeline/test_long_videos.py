"""The table of long videos in docs/production.md is what the plans say."""

from pathlib import Path

import pytest

from tests.benchmarks.long_videos import rows


@pytest.mark.quick
def test_the_table_of_long_videos_is_the_plans_own() -> None:
    text = (Path(__file__).parents[2] / "docs" / "production.md").read_text()
    for line in rows():
        assert line in text
