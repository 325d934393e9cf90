"""What tests of merging methods share: made-up videos, and the decoder called by hand on merged tokens."""

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.clip import Clip, Saliency
from pipeline.layout import Layout
from pipeline.merging import Merged, VisualTokens
from pipeline.methods.base import Method
from pipeline.question import Question
from pipeline.ranking import stages
from pipeline.runtime import Runtime


def layout(frames: int, cells: int, similarity: Sequence[float] | None = None) -> Layout:
    similar = np.full(frames - 1, 0.95) if similarity is None else np.array(similarity)
    return Layout(frames, cells, 1, 3, 5, similar, np.zeros(frames))


def tokens(frames: int, cells: int, width: int = 6, seed: int = 0) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    pooling, received = torch.rand(2, frames, cells, generator=generator)
    hidden = torch.randn(frames, cells, width, generator=generator)
    keys = torch.randn(frames, cells, 4, generator=generator)
    return VisualTokens(hidden, Saliency(pooling, received, keys))


def merged(method: Method, one: Layout, visual: VisualTokens) -> Merged:
    (stage,) = stages(method.plan(one, 12), one, torch.device("cpu"))
    return method.merge(stage, visual)


def of_clip(runtime: Runtime, method: Method, clip: Clip, question: Question) -> Merged:
    """What `method` makes of a clip's tokens."""
    hidden = clip.features[: clip.frames * clip.cells].view(clip.frames, clip.cells, -1)
    return merged(method, runtime.layout(clip, question), VisualTokens(hidden, clip.saliency))


@torch.no_grad()
def by_hand(runtime: Runtime, method: Method, clip: Clip, question: Question) -> torch.Tensor:
    """Log-probabilities after a prompt whose video is replaced before the decoder sees it: no cache, nothing
    of pipeline.packing.
    """
    family, prompt = runtime.family, runtime.prompt(clip, question)
    kept, states = of_clip(runtime, method, clip, question)
    before, after = family.embed(prompt.before), family.embed(prompt.after)
    trailing = clip.features[clip.frames * clip.cells :]
    start = len(prompt.before)
    end = start + clip.frames * clip.cells
    whole = end + clip.trailing + len(prompt.after)
    places = torch.cat((torch.arange(start), kept + start, torch.arange(end, whole)))
    if method.positions == "compact":
        places = torch.arange(len(places))
    embeddings = torch.cat((before, states[None], trailing[None], after), dim=1)
    last = family.language_model(inputs_embeds=embeddings, position_ids=places[None]).last_hidden_state[0, -1]
    return family.lm_head(last).log_softmax(dim=-1)
