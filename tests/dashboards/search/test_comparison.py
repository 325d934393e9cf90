"""Ways to prune side by side: the table is in order and says what the records say, the drawings show it."""

from __future__ import annotations

import csv
import io

import pytest

from dashboards.picture.picture import to_csv, to_html, write
from dashboards.search.comparison import comparison_picture, comparison_rows, end_to_end_picture
from tests.summaries import make_comparison, make_end_to_end, make_held_out, make_summary
from tuner.records.measurements import Timed
from tuner.reporting.values import Compared


@pytest.mark.quick
def test_the_most_accurate_stands_first():
    summary = make_summary()
    rows = comparison_rows(make_comparison(own=summary).rows)
    accuracies = [row.accuracy for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert rows[0].name == "AdaTP, tuned"
    assert len(rows) == 11


@pytest.mark.quick
def test_a_row_says_what_was_measured():
    held_out = make_held_out(make_summary().best.configuration, 0.89, 0.297)
    timed = Timed("some CPU", 12, 0.03, 0.1)
    comparison = make_comparison(0, rows=(Compared("This one", held_out, "about it", timed),))
    (row,) = comparison_rows(comparison.rows)
    assert (row.name, row.method, row.about) == ("This one", "adatp", "about it")
    assert (row.accuracy, row.accuracy_low, row.accuracy_high) == pytest.approx((0.89, 0.86, 0.915))
    assert (row.difference, row.difference_low, row.difference_high) == pytest.approx((-0.05, -0.07, -0.03))
    assert (row.regressions, row.gained, row.questions, row.videos) == (36, 4, 600, 80)
    assert (row.seconds, row.seconds_ratio) == pytest.approx((0.03, 0.3))
    assert (row.flops_ratio, row.p_value) == (0.297, 0.012)


@pytest.mark.quick
def test_what_was_not_timed_has_no_seconds():
    (row,) = comparison_rows(make_comparison(1).rows)
    assert (row.seconds, row.seconds_ratio) == (None, None)
    assert "not timed" in to_html(comparison_picture(make_comparison(1)))


@pytest.mark.quick
def test_the_page_shows_the_numbers_and_which_way_is_better():
    summary = make_summary()
    picture = comparison_picture(make_comparison(own=summary, unreachable={"Merging": 0.41}))
    page = to_html(picture)
    assert "-5.0 [-7.0, -3.0]" in page
    assert "36 / 4" in [annotation.text for annotation in picture.plotly.layout.annotations]
    assert "unpruned: 94.0 %" in page
    assert "higher is better" in page
    assert "Merging cannot reach this budget: its minimum is 41.0 %." in picture.description
    assert "AdaTP, tuned has the best accuracy, 89.0 % against 94.0 % unpruned" in picture.description


@pytest.mark.quick
def test_equal_end_to_end_flops_are_a_figure_of_their_own():
    summary = make_summary()
    assert end_to_end_picture(make_comparison(own=summary)) is None
    found = make_end_to_end(summary)
    picture = end_to_end_picture(make_comparison(own=summary, end_to_end=found))
    assert (picture.name, picture.title) == (
        "comparison-end-to-end",
        f"Pruning methods at {100 * found.flops_ratio:.0f} % of the end-to-end FLOPs",
    )
    assert [row.name for row in picture.table] == ["Fewer frames", "AdaTP, tuned", "Random tokens"]
    assert "Fewer frames has the best accuracy, 91.0 % against 94.0 % unpruned" in picture.description
    assert "PyramidDrop cannot come down to the end-to-end FLOPs of AdaTP, tuned" in picture.description
    # Nothing of it is timed, so there is no such column.
    assert "<b>time</b>" not in [annotation.text for annotation in picture.plotly.layout.annotations]


@pytest.mark.quick
def test_without_labels_it_is_agreement():
    page = to_html(comparison_picture(make_comparison(labelled=False)))
    assert "held-out agreement with the unpruned model" in page


@pytest.mark.quick
def test_the_csv_reads_back_as_the_table():
    rows = comparison_rows(make_comparison().rows)
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [row["name"] for row in read] == [row.name for row in rows]
    assert [float(row["accuracy"]) for row in read] == [row.accuracy for row in rows]


@pytest.mark.parametrize("count", [0, 3])
def test_any_number_of_methods_is_drawn_the_same_twice(tmp_path, count):
    picture = [write(comparison_picture(make_comparison(count)), tmp_path / item) for item in "ab"]
    assert [file.read_bytes() for file in picture[0]] == [file.read_bytes() for file in picture[1]]
    assert [item.name for item in picture[0]] == ["comparison.html", "comparison.csv"]
