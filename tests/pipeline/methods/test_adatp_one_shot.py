"""AdaTP in one shot differs from AdaTP in nothing but when it drops."""

import numpy as np
import pytest

from pipeline.layout import Layout, Layouts
from pipeline.methods import AdaTP, AdaTPOneShot, to_dict
from pipeline.plan import pruning_layers

pytestmark = pytest.mark.quick

KNOBS = {"tau_s": 0.95, "tau_t": 0.5, "alpha_boost": 1.2, "p": 0.7}
LAYOUT = Layout(6, 4, 1, 3, 5, [0.99, 0.60, 0.96, 0.94, 0.99], [0.02, 0.04, 0.10, 0.12, 0.01, 0.01])


@pytest.mark.parametrize("deduplicate", ["demote", "drop", "off"])
@pytest.mark.parametrize("layers", [12, 24, 28])
def test_it_keeps_from_the_first_pruning_on_what_adatp_keeps_at_the_end(deduplicate, layers):
    progressive = AdaTP(**KNOBS, deduplicate=deduplicate).plan(LAYOUT, layers)
    at_once = AdaTPOneShot(**KNOBS, deduplicate=deduplicate).plan(LAYOUT, layers)
    assert at_once.layers == progressive.layers[:1] == (2,)
    assert at_once.kept == progressive.kept[-1:]
    assert (at_once.groups, at_once.boosted) == (progressive.groups, progressive.boosted)


def test_a_boost_weighs_as_much_as_in_adatp():
    plan = AdaTPOneShot(**{**KNOBS, "p": 0.8}).plan(
        Layout(40, 20, 0, 3, 5, [0.99] * 19 + [0.5] + [0.99] * 19, [0.0] * 20 + [0.1] * 20), 12
    )
    steps = len(pruning_layers(12))
    assert plan.boosted == (False, True)
    assert plan.kept == ((int(np.ceil(0.8**steps * 400)), int(np.ceil(0.95**steps * 400))),)


def test_its_answers_are_never_taken_for_adatps():
    assert to_dict(AdaTPOneShot(**KNOBS)) == {**to_dict(AdaTP(**KNOBS)), "method": "adatp_one_shot"}
    layouts = Layouts.of([LAYOUT])
    keys = [method(**KNOBS).plans(layouts, 12).keys() for method in (AdaTP, AdaTPOneShot)]
    assert keys[0] != keys[1]
