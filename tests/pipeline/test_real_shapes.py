"""The whole way through the language model at the sizes of published checkpoints, on a device without values.

Every shape has to fit, nothing may read a value of the device (on "meta" that is an error by itself), and the
operations that are dispatched are counted: on a GPU each costs a few microseconds of the host.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.clip import Clip, Saliency
from pipeline.methods import METHODS, AdaTP, Method
from pipeline.packing import Pack
from pipeline.question import Question
from pipeline.runtime import Request, Runtime
from tests.benchmarks.shapes import SIZES, build

# Frames and tokens a frame of the published evaluations.
SHAPES = {"0.5b": (32, 196), "7b": (32, 196), "llava-video-7b": (64, 182)}
LETTERS = Question("letters", "what color is the ring on brick?", ("red", "blue"))
WORDS = Question("words", "what color is the ring on brick?", ("red", "dark blue", "top left of the scene"))
FREE = Question("free", "what color is the ring on brick?")
EVERY = [None, *(METHODS[name]() for name in METHODS)]


class Dispatched(TorchDispatchMode):
    """Counts the operations that reach the device; views and sizes cost no launch and are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not function.is_view and getattr(out, "device", torch.device("cpu")).type == "meta":
            self.operations[function.name()] += 1
        return out


@pytest.fixture(scope="module", params=SHAPES)
def loaded(request, tmp_path_factory) -> tuple[Runtime, Clip]:
    frames, cells = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("shape")
    meta = torch.device("meta")
    runtime = build(request.param, folder, device=meta, dtype=torch.bfloat16, frames=frames)
    drawn = np.random.default_rng(0)
    embedding = drawn.normal(size=1152).astype(np.float32)
    runtime._text_embedding = lru_cache(lambda _: embedding)
    trailing = runtime.family.video_tokens(frames) - frames * cells
    hidden = SIZES[request.param].hidden
    clip = Clip(
        "clip",
        "hash",
        np.arange(frames) * 1.0,
        torch.empty(frames * cells + trailing, hidden, dtype=torch.bfloat16, device=meta),
        torch.from_numpy(drawn.normal(size=(frames, 1152)).astype(np.float32)),
        Saliency(
            torch.empty(frames, cells, device=meta),
            torch.empty(frames, cells, device=meta),
            torch.empty(frames, cells, 72, device=meta),
        ),
        cells,
        trailing,
        float(frames),
    )
    return runtime, clip


@torch.inference_mode()
def asked(runtime: Runtime, clip: Clip, question: Question, method: Method | None, count: int = 1) -> Pack:
    return Pack(runtime.family, [runtime.pack_item(Request(clip, question, method)) for _ in range(count)])


@pytest.mark.parametrize(
    ("question", "method"),
    [*((LETTERS, item) for item in EVERY), *((item, AdaTP()) for item in (WORDS, FREE)), (FREE, None)],
    ids=lambda one: getattr(one, "id", getattr(one, "name", "unpruned")),
)
def test_every_method_runs_and_reads_one_value_of_the_device_at_the_end(loaded, method, question):
    runtime, clip = loaded
    runtime.scoring = "letter" if question is LETTERS else "words"
    pack = asked(runtime, clip, question, method)  # reading a value here would be an error
    layout = runtime.layout(clip, question)
    if method is not None:
        plan = method.plan(layout, runtime.shape.layers)
        assert pack.kept(0) == tuple(plan.total(j) for j in range(len(plan.layers)))
        assert pack.kept(0)[-1] < layout.visual
    texts = {0: [runtime.family.answer_ids(option) for option in question.options or ()]}
    read = partial(pack.score, texts) if question.options else partial(pack.greedy, [0], 1, ())
    with torch.inference_mode(), pytest.raises(NotImplementedError, match="out of meta tensor"):
        read()


def test_pruning_dispatches_few_operations_beside_the_layers_own(loaded, capsys):
    """Eight questions in a row of the 7B shape dispatched about 5,100 operations pruned, 2,900 unpruned."""
    runtime, clip = loaded
    if clip.features.shape != (32 * 196 + 1, 3584):
        pytest.skip("counted at one shape")
    runtime.scoring = "words"
    found = {}
    for count in (1, 8):
        for name, method in (("unpruned", None), ("pruned", AdaTP(tau_s=-1.0, p=0.85))):
            asked(runtime, clip, WORDS, method, count)  # the prefix is stored now
            with Dispatched() as dispatched:
                asked(runtime, clip, WORDS, method, count)
            found[count, name] = dispatched.operations.total()
    with capsys.disabled():
        layers = runtime.shape.layers
        lines = (
            f"{count} questions {name}: {total} operations, {total / layers:.1f} a layer"
            for (count, name), total in found.items()
        )
        print(  # noqa: T201 -- a figure for people
            f"\n{layers} layers, hidden {runtime.shape.hidden}: " + "; ".join(lines)
        )
    prunings = len(AdaTP(p=0.85).plan(runtime.layout(clip, WORDS), runtime.shape.layers).layers)
    for count in (1, 8):
        assert found[count, "pruned"] - found[count, "unpruned"] <= prunings * (30 * count + 10)
