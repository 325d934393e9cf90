"""Scores are numbers, and those that queries and keys say, in whatever format the model computes.

Qwen2's biases give all products of queries and keys a large common part, which the softmax takes out again.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import packing, scores
from pipeline.errors import NotFiniteError
from pipeline.merging import VisualTokens
from pipeline.methods import METHODS, AdaTP, FastV, FastVid, PyramidDrop, VisionZip
from pipeline.packing import Pack
from pipeline.question import Question
from pipeline.ranking import stages
from pipeline.runtime import Request, Runtime
from pipeline.scores import row_scores, without_autocast
from tests.checkpoints import scenes
from tests.pipeline.conftest import FRAMES

# Of a score: float32 keeps four digits of the differences between products of 1e5.
NEAR_TIE = 5e-3


def exact(query, keys, scaling, columns, after=0):
    """Written out in float64: (columns,) mean over heads and rows of causal softmax rows."""
    keys = keys[:, :, : keys.shape[2] - after]
    heads, rows = query.shape[1:3]
    keys = keys[0].double().repeat_interleave(heads // keys.shape[1], dim=0)
    n = keys.shape[1]
    mean = torch.zeros(n, dtype=torch.float64)
    for row in range(rows):
        seen = n - rows + row + 1
        logits = torch.einsum("hd,hnd->hn", query[0, :, row].double(), keys[:, :seen]) * scaling
        mean[:seen] += logits.softmax(dim=-1).mean(dim=0) / rows
    return mean[columns]


def as_before(query, keys, scaling, columns, after=0):
    """Multiplied in the model's own format and scaled afterwards: the wrong values."""
    keys = keys[:, :, : keys.shape[2] - after]
    rows, (kv_heads, n, head) = query.shape[2], keys.shape[1:]
    logits = query.reshape(kv_heads, -1, head) @ keys[0].transpose(1, 2) * scaling
    logits = logits.view(-1, rows, n)
    if rows > 1:
        later = torch.ones(rows, rows, dtype=torch.bool).triu(1)
        logits[..., n - rows :].masked_fill_(later, float("-inf"))
    return logits.softmax(dim=-1, dtype=torch.float32)[..., columns].mean(dim=(0, 1))


def differing(scores, wanted, count):
    """Of the `count` best-scored tokens those that the exact scores do not keep, near ties left out."""
    best = wanted.argsort(descending=True, stable=True)
    cut = wanted[best[count - 1]]
    kept = scores.argsort(descending=True, stable=True)[:count]
    lost = set(best[:count].tolist()) ^ set(kept.tolist())
    return {token for token in lost if abs(wanted[token] - cut) > NEAR_TIE * cut}


def with_common_part(common, dtype, rows=1, n=1500):
    """Queries (1, 8, rows, 64) and keys (1, 2, n, 64) whose products all lie around `common`."""
    drawn = torch.Generator().manual_seed(0)
    direction = torch.randn(64, generator=drawn).sign() * (common / 64) ** 0.5
    query = torch.randn(1, 8, rows, 64, generator=drawn) + direction
    keys = torch.randn(1, 2, n, 64, generator=drawn) + direction
    return query.to(dtype), keys.to(dtype)


@pytest.mark.quick
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("common", [1e4, 6.4e4, 1e5])
def test_tokens_are_those_of_exact_scores_however_large_the_products(common, dtype, rows):
    """At ae20304 products were taken in half precision: of 25 % of 6,272 tokens, the share that exact scores
    keep as well was .91, .78, .76 in bfloat16 and .99, .98, .26 in float16. Here: all of them.
    """
    query, keys = with_common_part(common, dtype, rows)
    columns = torch.arange(10, 1490)
    wanted = exact(query, keys, 64**-0.5, columns)
    found = row_scores(query, keys, 64**-0.5, columns)
    assert found.dtype == torch.float32
    assert differing(found, wanted, 370) == set()
    assert differing(as_before(query, keys, 64**-0.5, columns), wanted, 370)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_reach_the_scores(dtype):
    query, keys = with_common_part(1e5, torch.float32)
    wanted = row_scores(query, keys, 0.125, torch.arange(0, 1500))
    with torch.autocast("cpu", dtype):
        assert row_scores(query, keys, 0.125, torch.arange(0, 1500)).equal(wanted)


@pytest.mark.parametrize("method", [VisionZip(keep_ratio=0.4), FastVid(keep_ratio=0.4, segments=2)], ids=str)
def test_autocast_does_not_reach_what_is_merged(runtime, clip, question, method):
    kept = []
    hidden = torch.randn(clip.frames, clip.cells, 64, generator=torch.Generator().manual_seed(0)) + 100
    layout = runtime.layout(clip, question)
    (stage,) = stages(method.plan(layout, 12), layout, hidden.device)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), without_autocast(hidden.device):
            kept.append(method.merge(stage, VisualTokens(hidden, clip.saliency)))
    assert kept[0].kept.equal(kept[1].kept)
    assert kept[0].hidden.equal(kept[1].hidden)


@pytest.mark.quick
@pytest.mark.parametrize("bytes_at_a_time", [1, 8 * 1500 * 4 * 2, 2**30])
def test_scores_of_many_rows_are_the_same_run_by_run(bytes_at_a_time, monkeypatch):
    """At ae20304 they were summed by index_add, whose order on a GPU differs from run to run."""
    monkeypatch.setattr(scores, "SCORE_BYTES", bytes_at_a_time)
    query, keys = with_common_part(0.0, torch.float32, rows=7)
    found = row_scores(query, keys, 0.125, torch.arange(100, 1500))
    torch.testing.assert_close(
        found, exact(query, keys, 0.125, torch.arange(100, 1500)).float(), rtol=1e-4, atol=0
    )


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return out


@pytest.mark.quick
@pytest.mark.parametrize("rows", [1, 450])
def test_memory_for_scores_does_not_grow_with_the_rows(rows):
    """The shape of a 7B model and 32 frames; 450 rows of 28 heads over 6,272 tokens would be 316 MB."""
    query = torch.empty(1, 28, rows, 128, dtype=torch.bfloat16, device="meta")
    keys = torch.empty(1, 4, 6272, 128, dtype=torch.bfloat16, device="meta")
    with Largest() as largest:
        assert row_scores(query, keys, 0.1, torch.arange(14, 6000)).shape == (5986,)
    assert largest.bytes <= 16 * 2**20


@pytest.mark.quick
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["query", "key"])
def test_one_head_that_is_not_a_number_leaves_no_scores(wrong, where):
    """A product of minus infinity would have the weight 0, which looks like a number."""
    query, keys = with_common_part(0.0, torch.float32, rows=3)
    (query if where == "query" else keys)[0, 1, 2, 0] = wrong
    assert row_scores(query, keys, 0.125, torch.arange(10, 50)).isnan().all()


# -- in the model -------------------------------------------------------------------------------------------

WHOLE = {"tau_s": -1.0, "deduplicate": "off"}  # one segment: the best-scored tokens of the whole video
RANKED = [FastV(keep_ratio=0.25), AdaTP(p=0.6, **WHOLE), AdaTP(p=0.7, **WHOLE, score_query="mean")]


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def biased(request, checkpoints):
    """A model all of whose products of queries and keys have a part of 2 x 224^2 = 100,352 in common.

    It comes from one pair of dimensions that does not turn with the position, and leaves the others alone.
    """
    runtime = Runtime.load(
        str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=FRAMES, dtype=request.param
    )
    runtime.family.language_model.rotary_emb.inv_freq[-1] = 0
    for layer in runtime.family.layers:
        for project in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            for dimension in (7, 15):  # of heads of 16
                project.weight.data[dimension::16] = 0
                project.bias.data[dimension::16] = 224
    return runtime


@pytest.fixture(scope="module")
def biased_clip(biased):
    return biased.encode_frames(scenes(FRAMES), np.arange(FRAMES) / 2)


def split(runtime, clip, question, method):
    with torch.inference_mode():
        return Pack(runtime.family, [runtime.pack_item(Request(clip, question, method))]).tokens(0)


def whole(runtime, clip, question, method):
    return runtime.one_pass(clip, question, method).tokens(0)


@pytest.mark.parametrize("way", [split, whole], ids=lambda one: one.__name__)
@pytest.mark.parametrize("method", RANKED, ids=["last once", "last", "mean"])
def test_a_model_with_large_biases_keeps_what_its_own_queries_and_keys_say(
    biased, biased_clip, question, method, way, monkeypatch
):
    asked = []

    def noting(*values):
        asked.append(values)
        return row_scores(*values)

    monkeypatch.setattr(packing, "row_scores", noting)
    every = torch.arange(biased_clip.frames * biased_clip.cells)
    tokens = [every, *way(biased, biased_clip, question, method)]
    ranked = [pair for pair in pairwise(tokens) if len(pair[1]) < len(pair[0])]
    wrong = []
    for values, (before, kept) in zip(asked, ranked, strict=True):
        wanted = exact(*values)
        best = torch.isin(before, kept).double()  # as scores, the kept ones are the best
        assert differing(best, wanted, len(kept)) == set()
        wrong.append(differing(as_before(*values), wanted, len(kept)))
    assert all(wrong)
    assert np.isfinite(biased.answer(biased_clip, question, method).option_logprobs).all()


@pytest.fixture
def nan_in_the_second_pruning(monkeypatch):
    """Scores of the second pruning are no numbers; all that the model computes is."""
    calls = []

    def noted(*values):
        calls.append(1)
        found = row_scores(*values)
        return found * float("nan") if len(calls) == 2 else found

    monkeypatch.setattr(packing, "row_scores", noted)


@pytest.mark.usefixtures("nan_in_the_second_pruning")
@pytest.mark.parametrize(
    ("way", "method"),
    [
        *((way, AdaTP(p=0.6)) for way in ("answer", "free", "tokens", "prefill")),
        ("answer", AdaTP(p=0.6, deduplicate="off")),
        ("answer", PyramidDrop(keep_ratio=0.5)),
    ],
    ids=str,
)
def test_ranking_by_what_is_not_a_number_is_an_error(runtime, clip, question, way, method):
    layer = 5 if isinstance(method, PyramidDrop) else 2
    asked = Question("q1", question.text) if way == "free" else question
    ask = {"tokens": whole, "prefill": Runtime.prefill}.get(way, Runtime.answer)
    message = rf"attention of layer {layer} \(counted from 0\) for question 'q1' is not a finite number"
    with pytest.raises(NotFiniteError, match=message):
        ask(runtime, clip, asked, method)


@pytest.mark.usefixtures("nan_in_the_second_pruning")
def test_of_several_questions_the_one_to_blame_is_named(runtime, clip, question):
    other = Question("q2", "what shape is first?", ("ring", "ball"))
    requests = [Request(clip, other, None), Request(clip, question, AdaTP(p=0.6))]
    with pytest.raises(NotFiniteError, match="for question 'q1'"):
        runtime.answer_many(requests)


# -- nobody waits for the device ----------------------------------------------------------------------------


class Border(TorchDispatchMode):
    """Notes what is copied to the device, and what a GPU would add up in an order of its own.

    Reading a value of the device "meta" is an error by itself: it has none.
    """

    def __init__(self):
        super().__init__()
        self.copied, self.scattered = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name, place = function.name().split(".")[0], getattr(out, "device", None)  # of one tensor
        given = dict(zip((argument.name for argument in function._schema.arguments), args, strict=False)) | (
            kwargs or {}
        )
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.dim() > 0]
        if (
            place is not None
            and any(tensor.device != place for tensor in tensors)
            and not given.get("non_blocking")
        ):
            self.copied.append(name)
        if name in ("aten::index_add", "aten::index_add_", "aten::scatter_add", "aten::scatter_add_"):
            self.scattered.append(name)
        return out


@pytest.fixture(scope="module")
def on_meta(checkpoints):
    """The runtime on a device without values, with a clip as long as the others'."""
    runtime = Runtime.load(str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=FRAMES)
    clip = runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES) / 2)
    runtime.family.model.to("meta")
    return runtime, clip


@pytest.mark.parametrize(
    ("method", "attention"),
    [*((item, "sdpa") for item in (None, *(method() for method in METHODS.values()))), (AdaTP(), "eager")],
    ids=lambda one: getattr(one, "name", str(one)),
)
def test_pruning_and_options_of_several_words_never_wait_for_the_device(
    on_meta, method, attention, monkeypatch
):
    """One value is read, at the end. Copies to the device are waited for, too: none within the layers.

    At ae20304 options of several words copied a mask from the host in every layer.
    """
    runtime, clip = on_meta
    monkeypatch.setattr(runtime.family.language_model.config, "_attn_implementation", attention)
    question = Question("q", "what color?", ("red", "dark blue", "top left of the scene"))
    texts = [runtime.family.answer_ids(option) for option in question.options]
    asked = [runtime.pack_item(Request(clip, question, method)) for _ in range(2)]
    within, outside, layers = Border(), Border(), []

    def watching(function):
        def run(*args):
            layers.append(1)
            with within:
                return function(*args)

        return run

    for owner, name in ((packing._Sequence, "before"), (packing._Attention, "_attend")):
        monkeypatch.setattr(owner, name, watching(getattr(owner, name)))
    with torch.inference_mode():
        pack = Pack(runtime.family, asked)
        before = len(layers)
        with outside, pytest.raises(NotImplementedError, match="out of meta tensor"):
            pack.score({0: texts, 1: texts})
    assert len(layers) == before + 2 * len(runtime.family.layers)
    assert within.copied == []
    assert within.scattered + outside.scattered == []
