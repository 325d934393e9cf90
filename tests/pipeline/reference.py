"""The pruned prefill written out a second time, with nothing of pipeline.packing or pipeline.ranking in it.

Whole prompt, no hooks, no cache, eager attention with its whole matrices, selection in plain loops.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from pipeline.clip import Clip
from pipeline.methods import AdaTP, FastV, FewerFrames, PyramidDrop
from pipeline.methods.base import Method
from pipeline.question import Question, prompt_text
from pipeline.runtime import Runtime


class Reference(NamedTuple):
    logits: torch.Tensor  # (vocabulary,) after the last token
    tokens: list[list[int]]  # kept visual tokens after each pruning
    weights: list[torch.Tensor]  # attention of each layer, (heads, n, n)


def choose(
    scores: Sequence[float],
    tokens: Sequence[int],
    groups: Sequence[int],
    kept: Sequence[int],
    cells: int,
    *,
    debias: bool,
) -> list[int]:
    """Local debiasing as one would tell it: group by group, cell by cell. Indices into `tokens`,
    ascending.
    """
    chosen, group_of = [], np.repeat(np.arange(len(groups)), groups)
    for group, count in enumerate(kept):
        members = [i for i, token in enumerate(tokens) if group_of[token] == group]
        ranked = sorted(members, key=lambda i: (-scores[i], i))
        if debias:
            seen, representatives, repeats = set(), [], []
            for i in ranked:
                cell = tokens[i] % cells
                (repeats if cell in seen else representatives).append(i)
                seen.add(cell)
            ranked = representatives + repeats
        chosen += ranked[:count]
    return sorted(chosen)


@torch.no_grad()
def prefill(
    runtime: Runtime,
    clip: Clip,
    question: Question,
    method: Method | None,
    *,
    following: Sequence[int] = (),
    forced: Sequence[Sequence[int]] | None = None,
    states: torch.Tensor | None = None,
) -> Reference:
    """The prompt, then `following` token ids. forced: the tokens to keep at each pruning, whatever the
    scores. states: (kept, hidden) what stands in the places of those kept at the first one.
    """
    family, layout = runtime.family, runtime.layout(clip, question)
    decoder = family.language_model
    prompt = family.prompt(prompt_text(question, runtime.scoring), clip.shape)
    parts = family.embed(prompt.before), clip.features[None], family.embed([*prompt.after, *following])
    hidden = torch.cat(parts, dim=1)
    plan = None if method is None else method.plan(layout, len(family.layers))
    start, tokens, kept_tokens = layout.text_before, list(range(layout.visual)), []
    positions, weights = torch.arange(hidden.shape[1]), []
    for index, layer in enumerate(family.layers):
        if plan is not None and index in plan.layers:
            j = plan.layers.index(index)
            if forced is not None:
                chosen = [tokens.index(token) for token in forced[j]]
            elif isinstance(method, FewerFrames):
                frames = np.linspace(0, layout.frames - 1, plan.frames_encoded, dtype=int)
                chosen = [frame * layout.cells + cell for frame in frames for cell in range(layout.cells)]
            else:
                assert isinstance(method, AdaTP | FastV | PyramidDrop)
                rows = slice(-1, None)
                if plan.score_rows == "question":
                    after = prompt.question.start - len(prompt.ids), prompt.question.stop - len(prompt.ids)
                    rows = slice(hidden.shape[1] + after[0], hidden.shape[1] + after[1])
                scores = weights[-1][:, rows, start : start + len(tokens)].mean(dim=(0, 1))
                debias = isinstance(method, AdaTP) and method.deduplicate != "off"
                chosen = choose(
                    scores.tolist(), tokens, plan.groups, plan.kept[j], layout.cells, debias=debias
                )
            rows_kept = [
                *range(start),
                *(start + i for i in chosen),
                *range(start + len(tokens), hidden.shape[1]),
            ]
            hidden = hidden[:, rows_kept]
            if states is not None and j == 0:
                hidden[0, start : start + len(chosen)] = states
            compact = method is not None and method.positions == "compact"
            positions = torch.arange(len(rows_kept)) if compact else positions[rows_kept]
            tokens = [tokens[i] for i in chosen]
            kept_tokens.append(tokens)
        n = hidden.shape[1]
        mask = torch.full((1, 1, n, n), float("-inf")).triu(1)
        rotary = decoder.rotary_emb(hidden, positions[None])
        given = layer.input_layernorm(hidden)
        out, attention = layer.self_attn(hidden_states=given, position_embeddings=rotary, attention_mask=mask)
        weights.append(attention[0])
        hidden = hidden + out
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return Reference(family.lm_head(decoder.norm(hidden))[0, -1], kept_tokens, weights)
