"""A trace keeps what an answer kept, attends as eager attention does, and says the segments of the plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import NotFiniteError
from pipeline.layout import Layout
from pipeline.methods import METHODS, AdaTP, FastV
from pipeline.runtime import Runtime
from pipeline.trace import ATTENTION_LAYER, Grid, segments, trace
from tests.pipeline.conftest import FRAMES


@pytest.mark.quick
@pytest.mark.parametrize(
    ("cells", "grid"),
    [
        (196, Grid(14, 14, False)),  # LLaVA-OneVision
        (182, Grid(13, 13, True)),  # LLaVA-Video, averaged
        (210, Grid(14, 14, True)),  # LLaVA-Video, bilinear
        (16, Grid(4, 4, False)),
        (12, Grid(3, 3, True)),
        (1, Grid(1, 1, False)),
        (7, Grid(1, 7, False)),
    ],
)
def test_a_frames_tokens_have_rows_and_columns(cells, grid):
    assert Grid.of(cells) == grid
    numbers = np.arange(2 * cells).reshape(2, cells)
    picture = grid.picture(numbers)
    assert picture.shape == (2, grid.rows, grid.columns)
    assert (
        picture[1]
        == cells + np.arange(grid.rows)[:, None] * (grid.columns + grid.newlines) + np.arange(grid.columns)
    ).all()


@pytest.mark.parametrize("method", [AdaTP(p=0.7, tau_s=0.9), FastV(0.3)])
def test_it_keeps_what_the_answer_kept(runtime, clip, question, method):
    seen = trace(runtime, clip, question, method)
    assert seen.kept == runtime.answer(clip, question, method).kept
    layout = runtime.layout(clip, question)
    assert seen.layers == method.plan(layout, runtime.shape.layers).layers
    before = np.arange(layout.visual)
    for tokens in seen.tokens:
        assert np.isin(tokens, before).all()
        assert (np.diff(tokens) > 0).all()
        before = tokens
    best = np.sort(np.argsort(-seen.attention, kind="stable")[: seen.kept[0]])
    if isinstance(method, FastV):
        assert seen.tokens[0].tolist() == best.tolist()


@pytest.fixture(scope="module")
def row(eager, clip, question):
    """(visual,) what eager attention says of the untouched model."""
    with torch.inference_mode():
        whole = eager.model(**eager.inputs(clip, question), output_attentions=True)
    layout = eager.layout(clip, question)
    attention = whole.attentions[ATTENTION_LAYER][0, :, -1].mean(dim=0).numpy()
    return attention[layout.text_before :][: layout.visual]


@pytest.mark.parametrize("method", [method() for method in METHODS.values()], ids=lambda one: one.name)
def test_attention_is_that_of_the_last_prompt_token_before_pruning(runtime, clip, question, method, row):
    """Whatever was pruned before that layer: fewer_frames left 23 numbers for 32 tokens, those of others."""
    seen = trace(runtime, clip, question, method)
    assert seen.attention == pytest.approx(row, rel=1e-4)
    assert seen.kept == runtime.answer(clip, question, method).kept


def test_attention_that_is_not_a_number_is_an_error(checkpoints, clip, question):
    runtime = Runtime.load(str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=FRAMES)
    runtime.family.layers[ATTENTION_LAYER].self_attn.k_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"attention of layer 1 .* for question 'q1'"):
        trace(runtime, clip, question, FastV(0.3))


def test_a_plan_that_keeps_everything_is_asked_unpruned(runtime, clip, question):
    seen = trace(runtime, clip, question, AdaTP(p=1.0))
    assert (seen.layers, seen.tokens, seen.kept) == ((), (), ())
    assert seen.attention == pytest.approx(trace(runtime, clip, question, FastV(0.3)).attention, rel=1e-4)


@pytest.mark.parametrize("norm", ["minmax", "raw", "zscore"])
def test_segments_are_those_of_the_plan(runtime, clip, question, norm):
    layout = runtime.layout(clip, question)
    middle = float(np.median(layout.frame_similarity))
    method = AdaTP(tau_s=middle, tau_t=0.5 if norm == "minmax" else 0.0, relevance_norm=norm)
    found, plan = segments(method, layout), method.plan(layout, runtime.shape.layers)
    assert len(found) > 1
    assert [layout.cells * (item.last - item.first + 1) for item in found] == list(plan.groups)
    assert [item.boosted for item in found] == list(plan.boosted)
    assert [item.relevance >= method.tau_t for item in found] == list(plan.boosted)
    assert found[0].first == 0
    assert found[-1].last == layout.frames - 1


@pytest.mark.quick
def test_scaled_relevance_goes_from_0_to_1_over_the_segments():
    layout = Layout(4, 16, 1, 6, 14, np.array([0.99, 0.2, 0.99]), np.array([0.1, 0.3, 0.0, 0.1]))
    found = segments(AdaTP(tau_s=0.9, tau_t=0.5), layout)
    assert [(item.first, item.last, item.boosted) for item in found] == [(0, 1, True), (2, 3, False)]
    assert [item.relevance for item in found] == pytest.approx([1.0, 0.0])
    raw = segments(replace(AdaTP(tau_s=0.9, tau_t=0.5), relevance_norm="raw"), layout)
    assert [item.relevance for item in raw] == pytest.approx([0.2, 0.05])
