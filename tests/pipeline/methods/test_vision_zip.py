"""VisionZip against its rules written out token by token."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.methods import VisionZip
from tests.pipeline.methods.merging import by_hand, layout, merged, tokens


def written_out(visual, kept, share):
    """kept: tokens of each frame. Returns {token: state}."""
    result, cells = {}, visual.hidden.shape[1]
    for frame, count in enumerate(kept):
        contextual = int(count * share + 0.5)
        by_attention = visual.saliency.received[frame].argsort(descending=True).tolist()
        dominant = set(by_attention[: count - contextual])
        rest = [cell for cell in range(cells) if cell not in dominant]
        targets = rest[:: max(1, len(rest) // max(contextual, 1))][:contextual]
        keys = torch.nn.functional.normalize(visual.saliency.keys[frame], dim=-1)
        given = {target: [] for target in targets}
        for cell in rest:
            if targets and cell not in targets:
                given[targets[int((keys[targets] @ keys[cell]).argmax())]].append(visual.hidden[frame, cell])
        for cell in dominant:
            result[frame * cells + cell] = visual.hidden[frame, cell]
        for target, others in given.items():
            mean = torch.stack(others).mean(dim=0) if others else 0
            result[frame * cells + target] = visual.hidden[frame, target] + mean
    return dict(sorted(result.items()))


@pytest.mark.quick
@pytest.mark.parametrize("share", [0.0, 0.15625, 0.5, 1.0])
@pytest.mark.parametrize(
    ("frames", "cells", "ratio"), [(4, 49, 0.25), (3, 16, 0.3), (5, 7, 0.9), (6, 9, 0.05)]
)
def test_dominant_tokens_stay_and_contextual_ones_take_in_the_rest(frames, cells, ratio, share):
    method, one = VisionZip(keep_ratio=ratio, contextual=share), layout(frames, cells)
    visual = tokens(frames, cells, seed=frames)
    kept, states = merged(method, one, visual)
    per_frame = np.bincount(kept // cells, minlength=frames)
    assert per_frame.sum() == method.plan(one, 12).total(0)
    assert np.ptp(per_frame) <= 1
    expected = written_out(visual, per_frame.tolist(), share)
    assert kept.tolist() == list(expected)
    torch.testing.assert_close(states, torch.stack(list(expected.values())))


@pytest.mark.quick
def test_its_share_of_merged_tokens_is_the_papers():
    for count, merged_ones in ((64, 10), (128, 20), (192, 30)):
        assert VisionZip()._shares(count, 1).tolist() == [[count - merged_ones], [merged_ones]]


@pytest.mark.quick
def test_the_share_of_merged_tokens_is_part_of_what_is_asked(runtime, clip, question):
    one = runtime.layout(clip, question)
    first, second = (runtime.fingerprint(VisionZip(contextual=share), one) for share in (0.2, 0.5))
    assert first != second


@pytest.mark.quick
@pytest.mark.parametrize("value", [-0.1, 1.5, True])
def test_a_share_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="contextual"):
        VisionZip(contextual=value)


@torch.no_grad()
def test_the_model_reads_the_merged_tokens_renumbered(runtime, clip, question):
    method = VisionZip(keep_ratio=0.5, contextual=0.4)
    expected = by_hand(runtime, method, clip, question)
    one_pass = runtime.one_pass(clip, question, method).logits(0).log_softmax(dim=-1)
    torch.testing.assert_close(one_pass, expected, rtol=0, atol=2e-5)
    (red,) = runtime.family.answer_ids("red")
    asked = replace(question, options=("red", "yellow"))
    answered = runtime.answer(clip, asked, method).option_logprobs[0]
    assert answered == pytest.approx(float(expected[red]), abs=2e-5)
