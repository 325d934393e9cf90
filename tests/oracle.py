"""AdaTP on one prompt, from end to end, in plain steps: for readers, and to hold pipeline/ against.

Nothing of pipeline.packing, ranking, plan or methods is used, only a loaded model, its encoded video and its
prompt. No cache, no batch, no selection tricks: each layer runs on the whole prompt, and loops choose tokens.
"""

from __future__ import annotations

import math

import torch


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def segments_of(frames: torch.Tensor, tau_s: float) -> list[list[int]]:
    """Step 1. frames: (n, E) embeddings. A new segment begins where neighbours are less alike than tau_s."""
    segments = [[0]]
    for i in range(1, len(frames)):
        if cosine(frames[i - 1], frames[i]) < tau_s:
            segments.append([])
        segments[-1].append(i)
    return segments


def relevant(segments: list[list[int]], frames: torch.Tensor, text: torch.Tensor, tau_t: float) -> list[bool]:
    """Step 2. Mean cosine of a segment's frames to the question, scaled to [0, 1] over the segments."""
    raw = [sum(cosine(frames[i], text) for i in segment) / len(segment) for segment in segments]
    low, high = min(raw), max(raw)
    if low == high:  # one segment, or none stands out: no contrast
        return [False] * len(segments)
    return [(value - low) / (high - low) >= tau_t for value in raw]


def representatives_first(tokens: list[int], scores: dict[int, float], cells: int) -> list[int]:
    """Step 6. Best-scored token of each spatial position first, repeats behind, each group by score."""
    seen, first, repeats = set(), [], []
    for token in sorted(tokens, key=lambda token: (-scores[token], token)):
        (repeats if token % cells in seen else first).append(token)
        seen.add(token % cells)
    return first + repeats


@torch.no_grad()
def adatp(runtime, clip, question, tau_s, tau_t, alpha_boost, gamma_cap, p):
    """Returns (vocabulary,) logits of the first token said, and the visual tokens kept at each pruning."""
    family, prompt = runtime.family, runtime.prompt(clip, question)
    decoder, layers = family.language_model, family.layers
    text = torch.from_numpy(runtime.text_embedding(question))
    segments = segments_of(clip.frame_embeddings, tau_s)
    boosted = relevant(segments, clip.frame_embeddings, text, tau_t)
    # Step 3: a relevant segment keeps more at each pruning, but never more than gamma_cap, nor less than p.
    ratios = [max(p, min(alpha_boost * p, gamma_cap)) if boost else p for boost in boosted]
    # Step 4: layers 2 to N - 12; in models of fewer than 24 layers, the same share of the depth.
    last = len(layers) - 12 if len(layers) >= 24 else round(4 * len(layers) / 7)
    members = [[frame * clip.cells + cell for frame in s for cell in range(clip.cells)] for s in segments]

    hidden = family.embed(prompt.ids)
    hidden[0, prompt.features] = clip.features
    rows = list(range(len(prompt.ids)))  # the prompt's tokens that are left
    place = {token: int(row) for token, row in enumerate(prompt.visual)}  # where each visual token stands
    left, kept, attention = set(place), [], None
    for number, layer in enumerate(layers):
        if 2 <= number <= last:
            # Step 5: attention of the last prompt token in the layer before, mean over heads.
            column = {row: i for i, row in enumerate(rows)}
            scores = {token: float(attention[column[place[token]]]) for token in left}
            chosen = set()
            for segment, ratio in zip(members, ratios, strict=True):
                count = max(1, math.ceil(ratio ** (number - 1) * len(segment) - 1e-9))
                ranked = representatives_first([t for t in segment if t in left], scores, clip.cells)
                chosen.update(ranked[:count])
            gone = {place[token] for token in left - chosen}
            hidden = hidden[:, [i for i, row in enumerate(rows) if row not in gone]]
            rows = [row for row in rows if row not in gone]
            left = chosen
            kept.append(sorted(left))
        # Step 7: what is left keeps its position.
        rotary = decoder.rotary_emb(hidden, torch.from_numpy(prompt.positions[:, rows]))
        mask = torch.full((1, 1, len(rows), len(rows)), float("-inf")).triu(1)
        normed = layer.input_layernorm(hidden)
        attended, weights = layer.self_attn(normed, position_embeddings=rotary, attention_mask=mask)
        attention = weights[0, :, -1].mean(dim=0)
        hidden = hidden + attended
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return family.lm_head(decoder.norm(hidden))[0, -1], kept
