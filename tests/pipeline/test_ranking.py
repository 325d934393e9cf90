"""The vectorised ranking against the rule written as loops."""

import numpy as np
import pytest
import torch

from pipeline.layout import Layout
from pipeline.methods import AdaTP
from pipeline.ranking import best_in_groups, drawn_scores, stages
from tests.pipeline.reference import choose

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("deduplicate", ["demote", "drop", "off"])
def test_ranking_equals_the_rule_written_as_loops_at_every_layer(seed, deduplicate):
    random = np.random.default_rng(seed)
    frames, cells = int(random.integers(1, 12)), int(random.integers(1, 10))
    layout = Layout(frames, cells, 1, 2, 3, random.uniform(0.5, 1, frames - 1), random.uniform(0, 1, frames))
    method = AdaTP(tau_s=0.8, p=float(random.uniform(0.3, 1)), deduplicate=deduplicate)
    plan = method.plan(layout, 12)
    tokens = torch.arange(layout.visual)
    for stage, kept in zip(stages(plan, layout, torch.device("cpu")), plan.kept, strict=True):
        scores = torch.from_numpy(random.integers(0, 8, len(tokens)) / 8).float()  # coarse: many ties
        chosen = best_in_groups(stage, scores, tokens, debias=deduplicate != "off")
        expected = choose(
            scores.tolist(), tokens.tolist(), plan.groups, kept, cells, debias=deduplicate != "off"
        )
        assert chosen.tolist() == expected
        tokens = tokens[chosen]


def test_a_draw_depends_on_its_seed_alone():
    tokens = torch.arange(50)
    assert drawn_scores("a", tokens).equal(drawn_scores("a", tokens))
    assert not drawn_scores("a", tokens).equal(drawn_scores("b", tokens))
