"""FastVID against its rules written out token by token."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.layout import Layouts
from pipeline.methods import FastVid
from tests.pipeline.methods.merging import by_hand, layout, merged, tokens


def peaks(states):
    """Density-peak scores of one frame's tokens (n, D), in plain loops."""
    n, width = states.shape
    distance = [[float((a - b).norm()) / width**0.5 for b in states] for a in states]
    density = [math.exp(-np.mean([d * d for d in sorted(row)[:4]])) for row in distance]
    largest = max(map(max, distance))
    scores = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if (density[j], -j) > (density[i], -i)]
        scores.append(min([largest, *denser]) * density[i])
    return scores


def written_out(visual, segments, shares, least):
    """segments: frames of each. shares: for each segment, salient and anchor tokens of each frame."""
    result, cells, first = {}, visual.hidden.shape[1], 0
    for length, (salient_of, anchors_of) in zip(segments, shares, strict=True):
        salient = []
        for frame in range(length):
            order = visual.saliency.pooling[first + frame].argsort(descending=True).tolist()
            salient += [(frame, cell) for cell in order[: salient_of[frame]]]
        state = {(f, c): visual.hidden[first + f, c] for f in range(length) for c in range(cells)}
        for place in salient:
            result[first + place[0], place[1]] = state[place]
        for frame in range(length):
            left = [cell for cell in range(cells) if (frame, cell) not in salient]
            if anchors_of[frame] == 0:
                continue
            scores = peaks(torch.stack([state[frame, cell] for cell in left]))
            best = sorted(range(len(left)), key=lambda i: -scores[i])[: anchors_of[frame]]
            anchors = [(frame, left[i]) for i in best]
            given = {anchor: [] for anchor in anchors}
            for place in state:
                if place not in salient and place not in anchors:
                    cosine = [float(torch.cosine_similarity(state[place], state[a], dim=0)) for a in anchors]
                    given[anchors[int(np.argmax(cosine))]].append(state[place])
            for anchor, others in given.items():
                own = max(1 / (len(others) + 1), least)
                mean = torch.stack(others).mean(dim=0) if others else torch.zeros_like(state[anchor])
                result[first + frame, anchor[1]] = own * state[anchor] + (1 - own) * mean
        first += length
    return {frame * cells + cell: state for (frame, cell), state in sorted(result.items())}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("ratio", "share", "step"), [(0.3, 0.4, 4), (0.5, 0.5, 2), (0.95, 0.9, 3), (0.1, 0.0, 1)]
)
def test_salient_tokens_stay_and_anchors_take_in_their_segment(ratio, share, step):
    similarity = [0.99, 0.99, 0.99, 0.5, 0.99, 0.2, 0.99, 0.99]  # segments of 4, 2 and 3 frames
    one, visual = layout(9, 8, similarity), tokens(9, 8)
    method = FastVid(keep_ratio=ratio, context_share=share, anchor_step=step, segments=1)
    plan = method.plan(one, 12)
    assert plan.groups == (32, 16, 24)
    shares = [method._shares(kept, n, 8) for kept, n in zip(plan.kept[0], (4, 2, 3), strict=True)]
    kept, states = merged(method, one, visual)
    expected = written_out(visual, (4, 2, 3), shares, method.anchor_weight)
    assert kept.tolist() == list(expected)
    torch.testing.assert_close(states, torch.stack(list(expected.values())))


@pytest.mark.quick
def test_segments_end_at_the_least_similar_frames_and_below_tau():
    first = layout(6, 2, [0.95, 0.99, 0.91, 0.97, 0.93])
    second = layout(4, 3, [0.99, 0.1, 0.98])
    both = Layouts((first, second))

    def sizes(**fields):
        return FastVid(**fields).partition(both).size.tolist()

    assert sizes(segments=1) == [12, 6, 6]
    assert sizes(segments=3) == [6, 4, 2, 6, 3, 3]
    assert sizes(segments=1, tau=0.96) == [2, 4, 4, 2, 6, 6]
    assert sizes(segments=100) == [2] * 6 + [3] * 4


@pytest.mark.quick
@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_segments_tokens_are_shared_out_to_the_last_and_fit_their_frames(share, step):
    method = FastVid(context_share=share, anchor_step=step)
    for frames in range(1, 10):
        for cells in (1, 4, 7):
            for total in range(1, frames * cells + 1):
                salient, context = method._shares(total, frames, cells)
                assert salient.sum() + context.sum() == total
                assert (salient + context <= cells).all()
                assert set(np.flatnonzero(context)) <= set(range(frames - 1, -1, -step))
                wanted = int(total * share)
                assert context.sum() <= wanted
                if share and total <= cells:  # there is room for all anchors wanted
                    assert context.sum() == wanted


@pytest.mark.quick
def test_equal_tokens_are_merged_without_a_draw():
    visual = tokens(3, 6)
    visual.hidden[:] = visual.hidden[:1, :1]
    kept, states = merged(FastVid(keep_ratio=0.5, segments=1), layout(3, 6), visual)
    assert len(kept) == 9
    torch.testing.assert_close(states, visual.hidden.flatten(0, 1)[kept])


@pytest.mark.quick
def test_what_does_not_show_in_the_counts_is_part_of_what_is_asked(runtime, clip, question):
    one = runtime.layout(clip, question)
    asked = [FastVid(), FastVid(context_share=0.3), FastVid(anchor_weight=0.5), FastVid(anchor_step=2)]
    assert len({runtime.fingerprint(method.with_ratio(0.5), one) for method in asked}) == len(asked)


@pytest.mark.quick
@pytest.mark.parametrize("fields", [{"segments": 0}, {"anchor_step": 0}, {"anchor_step": 1.5}, {"tau": -2}])
def test_values_that_mean_nothing_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        FastVid(**fields)


@torch.no_grad()
def test_the_model_reads_the_merged_tokens_at_their_own_positions(runtime, clip, question):
    method = FastVid(keep_ratio=0.5)
    expected = by_hand(runtime, method, clip, question)
    prefill = runtime.prefill(clip, question, method)
    one_pass = prefill.logits.log_softmax(dim=-1)
    # A token that follows stands behind the whole prompt, not behind what is left of it.
    assert prefill.next_position == len(runtime.prompt(clip, question).ids)
    dark, blue = runtime.family.answer_ids("dark blue")
    generated = runtime.model.generate(
        **prefill.inputs,
        max_new_tokens=2,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        prefix_allowed_tokens_fn=lambda *_: [dark],
    )
    after = generated.logits[1][0]
    torch.testing.assert_close(one_pass, expected, rtol=0, atol=2e-5)
    (red, _), (dark_blue, _) = (
        runtime.answer(clip, replace(question, options=options), method).option_logprobs
        for options in (("red", "yellow"), ("dark blue", "dark red"))
    )
    assert red == pytest.approx(float(expected[runtime.family.answer_ids("red")[0]]), abs=2e-5)
    # The packed way, which counts positions itself, says the same of the second word.
    assert dark_blue == pytest.approx(float(expected[dark] + after.log_softmax(dim=-1)[blue]), abs=5e-5)
