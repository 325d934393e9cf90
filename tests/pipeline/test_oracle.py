"""The pipeline against tests/oracle.py, which tells AdaTP in a hundred plain lines."""

import numpy as np
import pytest
import torch

from pipeline.methods import AdaTP
from pipeline.question import Question
from tests.checkpoints import scenes
from tests.oracle import adatp
from tests.pipeline.conftest import FRAMES

KNOBS = [
    {"tau_s": 0.95, "tau_t": 0.5, "alpha_boost": 1.1, "gamma_cap": 0.95, "p": 0.85},
    {"tau_s": 0.999, "tau_t": 0.0, "alpha_boost": 1.5, "gamma_cap": 0.9, "p": 0.6},
    {"tau_s": 0.5, "tau_t": 1.0, "alpha_boost": 1.2, "gamma_cap": 0.5, "p": 0.7},
    {"tau_s": 0.98, "tau_t": 0.3, "alpha_boost": 1.3, "gamma_cap": 1.0, "p": 0.3},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_adatp_is_what_a_hundred_plain_lines_make_of_it(runtime, eager, knobs, seed):
    clip = runtime.encode_frames(scenes(FRAMES, 3, seed=seed), np.arange(FRAMES) / 2)
    question = Question("q", "what color is the ring on brick?")
    logits, kept = adatp(eager, clip, question, **knobs)
    for way in (runtime, eager):
        found = way.prefill(clip, question, AdaTP(**knobs))
        assert [tokens.tolist() for tokens in found.tokens] == kept
        torch.testing.assert_close(found.logits, logits, rtol=0, atol=2e-5)
    assert len(kept[-1]) < clip.frames * clip.cells
