"""Two ways to compute the same attention keep the same tokens, but for near ties.

The comparison itself is tests/benchmarks/backends.py, which measures real backends; here it is put to work
where its results are known, and on backends and dtypes that differ.
"""

import numpy as np
import pytest
import torch

from pipeline.methods import AdaTP, FastV
from pipeline.plan import Plan
from pipeline.question import Question
from pipeline.ranking import best_in_groups, stages
from pipeline.runtime import Runtime
from tests.benchmarks.backends import Choice, choices, compare
from tests.checkpoints import scenes
from tests.pipeline.conftest import FRAMES

METHODS = [
    AdaTP(p=0.6),
    AdaTP(p=0.7, tau_s=0.5, deduplicate="off"),
    AdaTP(p=0.5, deduplicate="drop"),
    AdaTP(p=0.6, score_query="mean"),
    FastV(keep_ratio=0.3),
]


def label(method):
    return "-".join(str(value) for value in vars(method).values())


def choice(scores, kept, places=None, cells=10):
    """All in one group unless `places` says otherwise."""
    scores = np.array(scores, dtype=float)
    places = np.arange(len(scores)) if places is None else np.array(places)
    return Choice(places, cells, scores, np.isin(np.arange(len(scores)), kept))


def compared(first, second, clip, questions, method):
    """Every pruning of the second among the tokens the first one left."""
    debias = isinstance(method, AdaTP) and method.deduplicate != "off"
    found = []
    for question in questions:
        wanted = choices(first, clip, question, method)
        got = choices(second, clip, question, method, forced=wanted)
        assert len(wanted) == len(got) > 0
        found += [compare(*pair, debias=debias) for pair in zip(wanted, got, strict=True)]
    return found


@pytest.fixture(scope="module")
def rough(checkpoints):
    return Runtime.load(
        str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=FRAMES, dtype="bfloat16"
    )


@pytest.fixture(scope="module")
def long_clip(runtime):
    return runtime.encode_frames(scenes(24, scene_length=4), np.arange(24) / 2)


@pytest.fixture(scope="module")
def questions():
    texts = ("what color is the ring?", "is the red ball on sea?", "what shape is first?", "what is before?")
    return [Question(text, text, ("red", "blue")) for text in texts]


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_eager_and_sdpa_keep_the_same_tokens_but_for_near_ties(runtime, eager, long_clip, questions, method):
    found = compared(runtime, eager, long_clip, questions, method)
    assert max(backend.noise for backend in found) < 1e-5
    assert all(item.explained == len(item.gaps) for item in found)


def test_half_precision_differs_and_only_by_near_ties(runtime, rough, long_clip, questions):
    found = [item for each in METHODS for item in compared(runtime, rough, long_clip, questions, each)]
    assert sum(len(item.gaps) for item in found) > 0  # else the next line would say nothing
    assert all(item.explained == len(item.gaps) for item in found)


def test_a_choice_by_something_else_than_scores_is_found(runtime, rough, long_clip, questions, monkeypatch):
    """The claim can fail: here every 40th token is lost to a wrong sort."""
    first = [choices(runtime, long_clip, question, METHODS[1]) for question in questions]
    right = AdaTP.select

    def wrong(self, stage, scores, tokens, seed):
        scores = scores.clone()
        scores[::40] = -1.0
        return right(self, stage, scores, tokens, seed)

    monkeypatch.setattr(AdaTP, "select", wrong)
    found = []
    for question, wanted in zip(questions, first, strict=True):
        got = choices(rough, long_clip, question, METHODS[1], forced=wanted)
        found += [compare(*pair, debias=False) for pair in zip(wanted, got, strict=True)]
    assert any(item.explained < len(item.gaps) for item in found)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("shares", [(3, 2), (2, 8), (1.2, 1.1)], ids=str)
def test_noise_on_scores_moves_only_tokens_within_twice_the_noise(runtime, clip, question, debias, shares):
    """Whatever the scores: cuts among representatives or repeats, and representatives that change hands."""
    drawn, layout = np.random.default_rng(0), runtime.layout(clip, question)
    groups = (layout.visual // 2, layout.visual - layout.visual // 2)
    kept = tuple(int(size / share) for size, share in zip(groups, shares, strict=True))
    plan = Plan("adatp", groups, (2,), (kept,), (False, False))
    (stage,) = stages(plan, layout, torch.device("cpu"))
    tokens, found = torch.arange(layout.visual), []

    def chosen(scores):
        kept = best_in_groups(stage, torch.from_numpy(scores), tokens, debias=debias)
        return choice(scores, kept.numpy(), stage.slot.numpy(), stage.cells)

    for _ in range(50):
        scores = drawn.uniform(size=layout.visual)
        noise = drawn.uniform(-0.05, 0.05, layout.visual)
        found.append(compare(chosen(scores), chosen(scores + noise), debias=debias))
    assert {item.kept for item in found} == {plan.total(0)}
    assert sum(len(item.gaps) for item in found) > 0
    assert all(item.explained == len(item.gaps) for item in found)


def test_the_gap_is_the_distance_to_the_nearest_token_beyond_the_cut():
    first = choice([0.9, 0.5, 0.4, 0.1], kept=[0, 1])
    second = choice([0.9, 0.43, 0.45, 0.1], kept=[0, 2])
    found = compare(first, second, debias=False)
    assert (found.tokens, found.kept) == (4, 2)
    assert found.noise == pytest.approx(0.07)
    assert found.gaps == pytest.approx((0.1, 0.1))
    assert (found.within_noise, found.explained) == (0, 2)


def test_the_cut_is_that_of_the_tokens_own_group():
    first = choice([0.9, 0.5, 0.55, 0.2], kept=[0, 2], places=[0, 1, 10, 11])
    second = choice([0.9, 0.5, 0.3, 0.35], kept=[0, 3], places=[0, 1, 10, 11])
    assert compare(first, second, debias=False).gaps == pytest.approx((0.35, 0.35))


def test_a_representative_may_change_hands():
    """Positions 0, 0, 1: token 0 represents its position by a hair, and token 1 takes its place."""
    first = choice([0.500, 0.499, 0.9], kept=[0, 2], places=[0, 0, 1])
    second = choice([0.499, 0.500, 0.9], kept=[1, 2], places=[0, 0, 1])
    found = compare(first, second, debias=True)
    assert found.gaps == pytest.approx((0.001, 0.001))
    assert found.explained == 2


def test_a_token_far_from_the_cut_is_not_explained():
    first = choice([0.9, 0.5, 0.1], kept=[0, 1])
    second = choice([0.9, 0.49, 0.1], kept=[1, 2])
    found = compare(first, second, debias=False)
    assert found.gaps == pytest.approx((0.8, 0.4))
    assert (len(found.gaps), found.within_noise, found.explained) == (2, 0, 0)


def test_equal_choices_have_no_gaps_and_other_tokens_are_refused():
    one = choice([0.9, 0.5, 0.1], kept=[0])
    assert compare(one, one, debias=True).gaps == ()
    with pytest.raises(ValueError, match="same tokens"):
        compare(one, choice([0.9, 0.5], kept=[0]), debias=True)


def test_a_forced_run_sees_the_first_runs_tokens_and_tells_its_own_choice(runtime, long_clip, questions):
    method = AdaTP(p=0.6, tau_t=2.0)  # nothing boosted: the same counts for both questions
    wanted = choices(runtime, long_clip, questions[0], method)
    other = choices(runtime, long_clip, questions[1], method)
    got = choices(runtime, long_clip, questions[1], method, forced=wanted)
    assert all(np.array_equal(a.places, b.places) for a, b in zip(wanted, got, strict=True))
    assert np.array_equal(got[0].kept, other[0].kept)  # forced or not, its first choice is its own
    assert any(not np.array_equal(a.kept, b.kept) for a, b in zip(wanted, got, strict=True))
