"""The maps' profiles are right, the newline tokens stand apart, and the text claims what is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dashboards.inspection.bias import _description, _position_map, bias_picture, bias_rows
from dashboards.picture.picture import write
from tests.inspections import make_bias, make_inspection


@pytest.mark.quick
def test_profiles_are_in_units_of_their_own_mean():
    rows = bias_rows(make_inspection())
    frames = [row for row in rows if row.axis == "frame"]
    assert [row.attention for row in frames] == pytest.approx([number / 8.5 for number in range(1, 17)])
    assert [row.one_shot for row in frames] == pytest.approx([row.attention for row in frames])
    assert [row.adatp for row in rows] == pytest.approx([1] * 32)
    assert [row.attention for row in rows if row.axis == "position"] == pytest.approx([1] * 16)
    assert all(row.row is None and row.column is None for row in frames)


@pytest.mark.quick
def test_positions_have_rows_and_columns_and_newlines_no_column():
    attention = np.ones((16, 12))
    attention[:, 4] = 3  # row 1 column 0 of 3 x 3 with a newline after each row
    rows = bias_rows(make_inspection(cells=12, bias=make_bias(16, 12, attention=attention)))
    positions = [row for row in rows if row.axis == "position"]
    assert [(row.row, row.column) for row in positions[:5]] == [(1, 1), (1, 2), (1, 3), (1, None), (2, 1)]
    assert max(positions, key=lambda row: row.attention) is positions[4]
    drawn = _position_map(rows, "attention", 12)
    assert drawn.shape == (3, 4)
    assert np.unravel_index(drawn.argmax(), drawn.shape) == (1, 0)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("top", "peak", "said"),
    [
        (0.87, 6.0, "both biases"),
        (0.87, 1.2, "the end of the video, but hardly"),
        (0.13, 6.0, "not the end of the video"),
        (0.13, 1.2, "neither bias"),
    ],
)
def test_the_text_claims_the_biases_that_are_there(top, peak, said):
    attention = np.ones((16, 16))
    attention[:, 0] = peak * 15 / (16 - peak)  # so that this position has `peak` times the mean
    bias = make_bias(attention=attention, top_in_last=top)
    text = _description(make_inspection(bias=bias), bias)
    assert said in text
    assert f"{100 * top:.1f} %" in text
    assert f"{peak:.2f} times the mean" in text
    assert "the last 2 of 16 frames (12.5 % would be even" in text


def test_without_a_one_shot_as_cheap_it_is_left_out():
    inspection = make_inspection(bias=make_bias(one_shot=None, one_shot_ratio=None))
    picture = bias_picture(inspection)
    assert "one-shot" not in picture.description
    assert len(picture.plotly.data) == 4  # two lines, two maps
    assert {row.one_shot for row in picture.table} == {None}


@pytest.mark.quick
def test_nothing_averaged_is_no_picture():
    inspection = replace(make_inspection(), bias=None)
    assert bias_rows(inspection) == ()
    assert bias_picture(inspection) is None


def test_it_draws_the_same_twice(tmp_path):
    inspection = make_inspection(cells=12, cards=0)
    written = [
        [file.read_bytes() for file in write(bias_picture(inspection), tmp_path / name)] for name in "ab"
    ]
    assert written[0] == written[1]
    assert b"times the mean" in written[0][0]
