"""The rules of AdaTP one by one, on hand-made numbers."""

import numpy as np
import pytest
import torch

from pipeline.layout import Layout, Layouts
from pipeline.methods import KNOBS, METHODS, AdaTP, from_dict, json_schema, knobs, to_dict
from pipeline.methods.base import keep_count
from pipeline.ranking import stages

pytestmark = pytest.mark.quick

CUT = np.array([0.99, 0.60, 0.96, 0.94, 0.99])  # six frames
RELEVANCE = np.array([0.02, 0.04, 0.10, 0.12, 0.01, 0.01])


def layout(similarity=CUT, relevance=RELEVANCE, cells=4):
    return Layout(len(relevance), cells, 1, 3, 5, np.asarray(similarity), np.asarray(relevance))


def partition(method, one):
    return method.partition(Layouts((one,)))


@pytest.mark.parametrize(
    ("tau_s", "frames"),
    [(0.95, [2, 2, 2]), (0.5, [6]), (0.97, [2, 1, 1, 2]), (0.999, [1] * 6), (0.60, [6]), (0.6001, [2, 4])],
)
def test_a_segment_ends_where_similarity_falls_below_tau_s(tau_s, frames):
    assert partition(AdaTP(tau_s=tau_s), layout()).size.tolist() == [4 * count for count in frames]


@pytest.mark.parametrize(
    ("tau_t", "boosted"),
    [  # mean relevance 0.03, 0.11, 0.01; min-max 0.2, 1, 0
        (0.5, [False, True, False]),
        (0.199, [True, True, False]),
        (0.201, [False, True, False]),
        (0.0, [True, True, True]),
        (1.0, [False, True, False]),
        (1.01, [False, False, False]),
    ],
)
def test_relevance_is_the_mean_over_frames_min_max_scaled_over_segments(tau_t, boosted):
    assert partition(AdaTP(tau_t=tau_t), layout()).boosted.tolist() == boosted


def test_raw_and_z_scored_relevance_are_options():
    raw = AdaTP(relevance_norm="raw", tau_t=0.02)
    assert partition(raw, layout()).boosted.tolist() == [True, True, False]
    means = np.array([0.03, 0.11, 0.01])
    for tau_t in (-1.0, -0.5, 0.0, 1.0, 1.5):
        expected = (means - means.mean()) / means.std() >= tau_t
        assert (partition(AdaTP(relevance_norm="zscore", tau_t=tau_t), layout()).boosted == expected).all()


@pytest.mark.parametrize("norm", ["minmax", "raw", "zscore"])
@pytest.mark.parametrize("tau_t", [-5.0, 0.0])
def test_a_single_segment_is_never_boosted(norm, tau_t):
    one = partition(AdaTP(tau_s=0.5, tau_t=tau_t, relevance_norm=norm), layout())
    assert one.boosted.tolist() == [False]


def test_equally_relevant_segments_have_no_contrast():
    assert not partition(AdaTP(tau_t=0.0), layout(relevance=np.full(6, 0.25))).boosted.any()


def test_videos_of_a_study_do_not_touch_each_other():
    layouts = [layout(), layout(relevance=RELEVANCE[::-1]), layout(similarity=np.ones(5))]
    together = AdaTP().partition(Layouts.of(layouts))
    apart = [partition(AdaTP(), layout) for layout in layouts]
    assert together.size.tolist() == [size for item in apart for size in item.size]
    assert together.boosted.tolist() == [flag for item in apart for flag in item.boosted]
    assert together.first_group.tolist() == [0, 3, 6]
    assert together.layout.tolist() == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("p", "alpha", "gamma", "ratio", "binds"),
    [
        (0.8, 1.1, 0.95, 0.88, "alpha_boost"),
        (0.9, 1.1, 0.95, 0.95, "gamma_cap"),
        (0.8, 1.0, 0.95, 0.80, "alpha_boost"),
        (0.97, 1.2, 0.95, 0.97, "gamma_cap"),  # a cap below p never lowers p
        (0.9, 1.5, 1.0, 1.0, "gamma_cap"),
    ],
)
def test_boosted_ratio_is_p_or_the_capped_boost(p, alpha, gamma, ratio, binds):
    method = AdaTP(p=p, alpha_boost=alpha, gamma_cap=gamma)
    assert method.boosted_ratio == pytest.approx(ratio)
    assert method.binds == binds


def test_counts_are_powers_of_the_segments_own_ratio_rounded_up_once():
    method = AdaTP(p=0.8)  # boosted: 0.88
    plan = method.plan(layout(cells=9), 12)
    assert plan.boosted == (False, True, False)
    expected = [tuple(int(np.ceil(r**j * 18)) for r in (0.8, 0.88, 0.8)) for j in range(1, 7)]
    assert plan.kept == tuple(expected)
    assert plan.layers == (2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("tokens", "ratio", "kept"),
    [
        (10, 0.3, 3),
        (30, 0.1, 3),
        (6272, 0.2**3, 51),
        (100, 0.07, 7),
        (4, 1e-12, 1),
        (7, 1.0, 7),
        (3, 0.34, 2),
    ],
)
def test_counting_is_not_fooled_by_floating_point(tokens, ratio, kept):
    assert keep_count(np.array([tokens]), ratio).tolist() == [kept]


def test_float_noise_above_a_whole_number_keeps_no_extra_token():
    assert np.ceil(3 * 0.1 * 10) == 4
    assert keep_count(np.array([10]), 3 * 0.1).tolist() == [3]
    assert pytest.approx(49) == 0.7**2 * 100
    assert AdaTP(p=0.7).plan(Layout(100, 1, 0, 1, 1, np.ones(99), np.zeros(100)), 12).kept[1] == (49,)


@pytest.mark.parametrize(("boost", "percent"), [(1.00, 9), (1.05, 18), (1.10, 37), (1.15, 71)])
def test_ratios_compound_over_fifteen_prunings(boost, percent):
    # 32 segments of one frame, half of them boosted. The powers are 8.7, 18.2, 36.5 and 71.1 %; whole tokens
    # of 196 make 36.5 the 37 that is quoted.
    method = AdaTP(p=0.85, alpha_boost=boost, gamma_cap=1.0)
    one = layout(similarity=np.zeros(31), relevance=np.arange(32) % 2, cells=196)
    left = method.plan(one, 28).kept[14]
    assert round(100 * left[1] / 196) == percent
    assert left[0] == np.ceil(0.85**15 * 196)


# -- which tokens stay: two frames of three cells, one segment ----------------------------------------------


def select(method, one, scores, stage=0):
    plan = method.plan(one, 12)
    tokens = torch.arange(one.visual)
    chosen = method.select(stages(plan, one, torch.device("cpu"))[stage], torch.tensor(scores), tokens, "")
    assert len(chosen) == plan.total(stage)
    return chosen.tolist()


TWO_FRAMES = layout(similarity=[1.0], relevance=[0.0, 0.0], cells=3)
#         frame 0         frame 1
SCORES = [0.9, 0.1, 0.05, 0.8, 0.3, 0.02]


def test_without_debiasing_the_best_scores_stay():
    assert select(AdaTP(p=0.5, deduplicate="off"), TWO_FRAMES, SCORES) == [0, 3, 4]


def test_demoted_repeats_come_after_every_representative():
    # Cell 0 is best in both frames: one of them represents it, the other waits for all three representatives.
    assert select(AdaTP(p=0.5), TWO_FRAMES, SCORES) == [0, 2, 4]
    assert select(AdaTP(p=0.6), TWO_FRAMES, SCORES) == [0, 2, 3, 4]  # then repeats by score


def test_dropping_repeats_leaves_at_most_one_token_per_position_and_segment():
    plan = AdaTP(p=0.9, deduplicate="drop").plan(TWO_FRAMES, 12)
    assert [kept[0] for kept in plan.kept] == [3, 3, 3, 3, 3, 3]
    plan = AdaTP(p=0.6, deduplicate="drop").plan(TWO_FRAMES, 12)
    assert [kept[0] for kept in plan.kept] == [3, 3, 2, 1, 1, 1]
    assert select(AdaTP(p=0.9, deduplicate="drop"), TWO_FRAMES, SCORES) == [0, 2, 4]


def test_representatives_are_chosen_per_segment():
    apart = layout(similarity=[0.0], relevance=[0.0, 0.0], cells=3)
    assert select(AdaTP(p=0.34), apart, SCORES) == [0, 1, 3, 4]  # two of three in each


def test_ties_go_to_the_earlier_token():
    assert select(AdaTP(p=0.5), TWO_FRAMES, [0.5] * 6) == [0, 1, 2]


# -- definitions --------------------------------------------------------------------------------------------


def test_knobs_are_the_papers_five_in_order_with_ranges_and_sources():
    assert tuple(knobs(AdaTP)) == KNOBS == ("tau_s", "tau_t", "alpha_boost", "gamma_cap", "p")
    for name, knob in knobs(AdaTP).items():
        assert knob.low <= knob.default <= knob.high
        assert knob.default == getattr(AdaTP(), name)
        assert knob.source
        assert knob.meaning


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 0.0}, r"p lies in \(0, 1\], but got 0.0"),
        ({"p": 1.2}, r"p lies in \(0, 1\], but got 1.2"),
        ({"alpha_boost": 0.9}, r"alpha_boost lies in \[1, inf\], but got 0.9"),
        ({"gamma_cap": 2}, r"gamma_cap lies in \[0, 1\], but got 2"),
        ({"tau_s": float("nan")}, "tau_s lies in"),
        ({"tau_s": "high"}, "tau_s is a number, but got 'high'"),
        ({"deduplicate": "maybe"}, "deduplicate is one of 'demote', 'drop', 'off', but got 'maybe'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_rule(change, message):
    with pytest.raises(ValueError, match=message):
        AdaTP(**change)


@pytest.mark.parametrize("name", METHODS)
def test_methods_survive_the_way_through_plain_data(name):
    method = METHODS[name]().with_ratio(0.5)
    assert from_dict(to_dict(method)) == method
    schema = json_schema(METHODS[name])
    assert set(schema["properties"]) | {"method"} == set(to_dict(method))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"method": "fastv"}, "one of adatp, .*, but got 'fastv'"),
        ({"method": "adatp", "q": 1}, "adatp has the parameters tau_s, .*, but got 'q'"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(data, message):
    with pytest.raises(ValueError, match=message):
        from_dict(data)
