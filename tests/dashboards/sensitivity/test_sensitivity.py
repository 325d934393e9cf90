"""The tables say what the study found; the drawings take any of it and come out the same twice."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dashboards.picture.picture import to_csv, to_html, write
from dashboards.sensitivity.axes import ticks_of
from dashboards.sensitivity.curves import curve_rows, vertices
from dashboards.sensitivity.figure import sensitivity_pictures
from dashboards.sensitivity.indices import index_rows
from dashboards.sensitivity.map_marks import color_scale, drawn_map
from dashboards.sensitivity.maps import map_rows
from tests.sensitivities import make_curve, make_map, make_output, make_point, make_sensitivity
from tuner.sensitivity.maps import place_of
from tuner.sensitivity.results import Output
from tuner.statistics.values import Interval


@pytest.fixture(scope="module")
def pictures():
    return {picture.name: picture for picture in sensitivity_pictures(make_sensitivity())}


@pytest.mark.quick
def test_index_rows_rank_the_inputs_and_name_the_outputs_without():
    rows = index_rows(make_sensitivity())
    accuracy = [row for row in rows if row.output == "accuracy"]
    assert [index.input for index in accuracy] == ["compute", "alpha_boost", "tau_s", "tau_t", "gamma_cap"]
    first = accuracy[0]
    assert (first.total, first.total_low, first.total_high, first.ped_anova) == pytest.approx(
        (0.55, 0.385, 0.715, 0.5)
    )
    poor = [row for row in rows if row.output == "regressions"]
    assert [(output.input, output.r2, output.good) for output in poor] == [(None, 0.31, False)]


@pytest.mark.quick
def test_an_interval_beyond_1_is_not_cut_off():
    output = make_output(totals=(0.9, 0.25, 0.12, 0.02, 0.2))
    (picture,) = (
        picture
        for picture in sensitivity_pictures(
            make_sensitivity(outputs=(output,), curves=(), maps=(), by_tag=())
        )
    )
    # Its total index reaches to 1.17; the axis once ended at 1.03.
    assert picture.table[0].total_high == pytest.approx(1.17)
    assert picture.plotly.layout.xaxis.range[1] > 1.17


@pytest.mark.quick
def test_curve_rows_tell_safe_points_from_points_in_the_safe_range():
    points = [make_point(0.2, safe=True), make_point(0.4, safe=False), make_point(0.6), make_point(0.8)]
    curve = make_curve("p", points=points, safe=Interval(0.6, 0.8), tag=("type", "order"))
    rows = curve_rows([curve])
    assert [(row.value, row.safe, row.in_safe_range) for row in rows] == [
        (0.2, True, False),
        (0.4, False, False),
        (0.6, True, True),
        (0.8, True, True),
    ]
    assert {(row.tag, row.kind) for row in rows} == {("type", "order")}
    assert {row.in_safe_range for row in curve_rows([replace(curve, safe=None)])} == {False}


@pytest.mark.quick
def test_map_rows_are_the_maps_cells_with_their_place_in_the_budget():
    found = make_sensitivity(maps=(make_map(),))
    rows = map_rows(found)
    assert len(rows) == 21 * 21
    row = rows[21 * 3 + 5]
    one = found.maps[0]
    assert (row.first_value, row.second_value) == (one.first_values[3], one.second_values[5])
    assert (row.accuracy, row.flops_ratio) == (one.accuracy[3][5], one.flops_ratio[3][5])
    assert all(row.within_budget == (row.flops_ratio <= 0.3) for row in rows)
    blank = [row for row in rows if row.accuracy is None]
    assert {0.2 <= configuration.flops_ratio <= 0.4 for configuration in blank} == {False}
    assert to_csv(blank[:1]).splitlines()[1].split(",")[4] == ""


@pytest.mark.quick
def test_a_drawn_maps_budget_is_a_line_and_every_cell_over_it_is_marked():
    one = make_map()
    drawn = drawn_map(one, 0.3, Interval(60.0, 85.0))
    over = {
        (x, y)
        for x, row in zip(one.first_values, one.flops_ratio, strict=True)
        for y, value in zip(one.second_values, row, strict=True)
        if value > 0.3
    }
    assert {(mark.x, mark.y) for mark in drawn.over} == over
    assert 0 < len(over) < 21 * 21
    # Bright, dark and blank cells have inks of their own.
    assert len({mark.color for mark in drawn.over}) >= 2
    assert drawn.budget_at is not None
    x, y = (drawn.budget_at[0] - 0.2) / 0.8, drawn.budget_at[1]
    assert 0.15 + 0.27 * (0.9 * x + 0.1 * y) == pytest.approx(0.3)  # FLOPs are linear in this map
    assert drawn.reference == (0.62, 0.72)
    assert abs(y - 0.72) > 0.3  # away from the reference
    assert [level for level, _ in drawn.lines] == [20.0, 40.0]  # round ones, but not the budget
    assert (drawn.accuracy[5][9], drawn.flops[5][9]) == pytest.approx(
        (100 * one.accuracy[9][5], 100 * one.flops_ratio[9][5])
    )


@pytest.mark.quick
@pytest.mark.parametrize(("flops", "word"), [((0.2, 0.29), "within"), ((0.31, 0.39), "over")])
def test_a_map_on_one_side_of_the_budget_has_no_line_and_says_so(flops, word):
    found = make_sensitivity(maps=(make_map(flops=flops),), outputs=(), curves=(), by_tag=())
    (picture,) = sensitivity_pictures(found)
    assert drawn_map(found.maps[0], 0.3, color_scale(found)).budget_at is None
    assert f"The map of p and tau_t lies entirely {word} the budget." in picture.description
    assert ("highest value within the budget" in picture.description) == (word == "within")
    assert "blank" not in picture.description
    assert not picture.plotly.layout.annotations
    names = {
        trace.name for trace in picture.plotly.data if trace.type == "scatter" and trace.showlegend is None
    }
    assert names == {"other FLOPs, %"} | ({"over the budget"} if word == "over" else set())


def test_maps_are_drawn_with_blank_cells_with_nothing_but_blank_cells_and_over_every_pair_of_knobs(tmp_path):
    blank = make_map(covered=(0.0, 0.0))
    assert color_scale(make_sensitivity(maps=(blank,))) is None
    for maps in ((blank,), (make_map("tau_s", "gamma_cap"), blank), (make_map("alpha_boost", "tau_s"),)):
        found = make_sensitivity(maps=maps, outputs=(), curves=(), by_tag=())
        (picture,) = sensitivity_pictures(found)
        write(picture, tmp_path)
        cells = [
            z for trace in picture.plotly.data if trace.type == "heatmap" for row in trace.z for z in row
        ]
        assert sum(cell is None for cell in cells) == sum(row.accuracy is None for row in picture.table) > 0
        assert "20 % to 40 % of the unpruned FLOPs" in picture.description
        assert f"{sum(cell is None for cell in cells)} of {len(cells)} cells are blank" in picture.description


@pytest.mark.quick
def test_tau_s_is_drawn_by_its_distance_from_1_and_the_others_as_they_are():
    places = [place_of("tau_s", value) for value in (0.0, 0.9, 0.99, 1.0)]
    assert places == pytest.approx([0, 1, 2, 4])  # 1 itself has no logarithm
    assert place_of("p", 0.9) == 0.9
    at, texts = ticks_of("tau_s", 0.5, 0.999, most=4)
    assert texts[0] == "0.5"
    assert len(texts) <= 4
    assert at == pytest.approx([place_of("tau_s", float(text)) for text in texts])
    assert ticks_of("p", 0.5, 0.999) is None


@pytest.mark.quick
def test_exact_curves_are_drawn_as_steps_and_the_others_point_by_point():
    points = [make_point(0.2, 0.4, change=-0.01), make_point(0.4, 0.6, change=0.0)]
    steps = vertices(curve_rows([make_curve("tau_t", points=points)]), "difference")
    assert (steps["x"], steps["y"]) == ([0.2, 0.4, 0.4, 0.6], [-1.0, -1.0, 0.0, 0.0])
    grid = vertices(curve_rows([make_curve("p", points=points)]), "difference")
    assert (grid["x"], grid["y"]) == ([0.2, 0.4], [-1.0, 0.0])


def test_descriptions_carry_the_numbers(pictures):
    assert "compute 0.55 (0.39 to 0.72)" in pictures["sensitivity-indices"].description
    assert (
        "regressions (R² 0.31; more runs are not expected to help)"
        in pictures["sensitivity-indices"].description
    )
    assert (
        "a loss of more than 2.0 points. Safe ranges: tau_s 0.7828 to 0.999"
        in pictures["sensitivity-curves"].description
    )
    assert "over 64 runs on the tune videos, with compute from 20 % to 40 % of the unpruned FLOPs" in (
        pictures["sensitivity-indices"].description
    )
    assert "cells over the budget of 30 % are marked" in pictures["sensitivity-maps"].description
    assert (
        "The map of tau_t and alpha_boost lies entirely within the budget"
        in pictures["sensitivity-maps"].description
    )
    assert "order at tau_t 0.5: -1.9 (-5.1 to +1.3) points" in pictures["sensitivity-by-type"].description


def test_there_is_a_picture_for_each_part_and_each_tag(pictures):
    assert list(pictures) == [
        "sensitivity-indices",
        "sensitivity-curves",
        "sensitivity-maps",
        "sensitivity-by-type",
        "sensitivity-by-when",
    ]
    assert all(picture.plotly is not None for picture in pictures.values())


def test_the_same_study_gives_the_same_files_and_pages_need_no_network(tmp_path):
    found = make_sensitivity(by_tag=())
    files = [
        [
            file.read_bytes()
            for picture in sensitivity_pictures(found)
            for file in write(picture, tmp_path / name)
        ]
        for name in "ab"
    ]
    assert files[0] == files[1]
    page = (tmp_path / "a" / "sensitivity-curves.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert "higher is better" in page


def test_where_no_surrogate_is_good_enough_a_table_says_what_would_help():
    poor = (
        Output("accuracy", 0.4, good=False, more_runs=64, indices=()),
        Output("regressions", -0.1, good=False, more_runs=None, indices=()),
    )
    (picture,) = sensitivity_pictures(make_sensitivity(outputs=poor, maps=(), curves=(), by_tag=()))
    assert picture.plotly is None
    assert "about 64 more runs would probably be enough" in picture.body
    assert "<table>" in to_html(picture)
    assert "R² -0.10" in picture.description


def test_a_study_of_one_knob_and_one_input_is_drawn_without_intervals():
    point = make_point(0.5)
    bare = replace(
        point,
        accuracy=replace(point.accuracy, interval=None),
        difference=replace(point.difference, interval=None),
    )
    output = make_output()
    found = make_sensitivity(
        curves=(make_curve("p", points=[bare], safe=None),),
        by_tag=(),
        outputs=(replace(output, indices=output.indices[:1]),),
        maps=(),
        labelled=False,
    )
    indices, curves = sensitivity_pictures(found)
    assert "agreement with the unpruned model" in indices.description
    assert "p none shown" in curves.description
    assert curves.table[0].difference_low is None


def test_a_tags_names_cannot_break_the_page_or_share_a_file():
    tags = [("Größe!", "<b>x"), ("größe?", "y"), ("!!", "z")]
    found = make_sensitivity(
        curves=(), outputs=(), maps=(), by_tag=tuple(make_curve("p", tag) for tag in tags)
    )
    names = [picture.name for picture in sensitivity_pictures(found)]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)
    page = to_html(sensitivity_pictures(found)[0])
    assert "<b>x" not in page.split("Plotly.newPlot")[-1].replace("\\u003c", "<").replace("<b>&lt;b&gt;x", "")


def test_only_the_commonest_kinds_are_drawn_but_all_are_in_the_table():
    found = make_sensitivity(
        curves=(),
        outputs=(),
        maps=(),
        by_tag=tuple(make_curve("p", ("id", f"k{n}"), questions=10 + n) for n in range(9)),
    )
    (picture,) = sensitivity_pictures(found)
    headings = [annotation.text for annotation in picture.plotly.layout.annotations]
    assert headings == [f"<b>k{n}</b>, {10 + n} questions" for n in (8, 7, 6, 5, 4, 3)]
    assert {item.kind for item in picture.table} == {f"k{n}" for n in range(9)}
    assert "6 of 9 kinds" in picture.description
