"""The search history's picture: what the table says is what is drawn and told."""

from __future__ import annotations

import csv
import io

import pytest

from dashboards.picture.picture import to_csv, to_html, write
from dashboards.search.history import history_picture
from tuner.reporting.history import History, HistoryRow, ModelTime

TIME = ModelTime(baseline=10.0, trials=240.0, held_out=20.0, other=0.0)


def make_row(number, seconds, area, pruned_by=None, **changes):
    values = {
        "number": number,
        "purpose": "search",
        "own": True,
        "accuracy": None if pruned_by is not None else 0.8,
        "ratio": 0.28,
        "pruned_by": pruned_by,
        "videos": 40 if pruned_by is None else 10,
        "answers": 300,
        "seconds": 60.0,
        "seconds_so_far": seconds,
        "hypervolume_so_far": area,
    }
    return HistoryRow(**(values | changes))


def make_history(**changes):
    rows = (
        make_row(0, 60.0, 0.03),
        make_row(1, 90.0, 0.03, pruned_by=0),
        make_row(2, 180.0, 0.06),
        make_row(3, 240.0, 0.06, purpose="above", ratio=0.4),
    )
    return History(
        **({"study": "demo", "budget": 0.3, "videos": 40, "rows": rows, "model_time": TIME} | changes)
    )


@pytest.mark.quick
def test_the_area_is_drawn_in_per_cent_of_that_below_the_budget():
    picture = history_picture(make_history())
    line = picture.plotly.data[0]
    assert list(line.x) == [0.0, 1.0, 1.5, 3.0, 4.0]
    assert list(line.y) == pytest.approx([0.0, 10.0, 10.0, 20.0, 20.0])
    by_trial = picture.plotly.layout.updatemenus[0].buttons[1].args[0]["x"][0]
    assert by_trial == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.quick
def test_the_description_says_when_most_was_reached_and_which_trials_pruned_others():
    text = history_picture(make_history()).description
    assert "dominate 20.0 % of the area" in text
    assert "98 % of this was reached after 3 min 0 s" in text
    assert "1 of 4 trials were pruned, on average after 10 of 40 videos" in text
    assert "trial 0 (1)" in text


@pytest.mark.quick
def test_hovering_tells_which_trial_pruned_another_and_what_that_cost():
    page = to_html(history_picture(make_history()))
    assert "pruned after 10 of 40 videos: trial 0 and others are better" in page
    assert "300 new answers, 1 min 0 s of model time" in page


@pytest.mark.quick
def test_the_table_is_saved_as_it_is():
    rows = list(csv.DictReader(io.StringIO(to_csv(history_picture(make_history()).table))))
    assert [row["pruned_by"] for row in rows] == ["", "0", "", ""]
    assert [float(row["seconds_so_far"]) for row in rows] == [60, 90, 180, 240]


@pytest.mark.parametrize("rows", [0, 4])
def test_any_number_of_trials_is_drawn_the_same_twice(tmp_path, rows):
    history = make_history(rows=make_history().rows[:rows])
    written = [
        [file.read_bytes() for file in write(history_picture(history), tmp_path / item)] for item in "ab"
    ]
    assert written[0] == written[1]
