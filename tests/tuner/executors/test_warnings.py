from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest

from tuner.executors.warnings import Warnings

pytestmark = pytest.mark.quick


@pytest.fixture
def found() -> Iterator[Warnings]:
    one = Warnings()
    one.listen()
    yield one
    logging.captureWarnings(False)
    for name in ("", "transformers"):
        logging.getLogger(name).removeHandler(one)


def test_each_text_is_kept_once(found: Warnings) -> None:
    for number in (1, 1, 2):
        logging.getLogger("some.library").warning("slow path %d", number)
    logging.getLogger("some.library").info("all is well")
    logging.getLogger("transformers.models").error("no such kernel")
    assert found.take() == ["slow path 1", "slow path 2", "no such kernel"]
    logging.getLogger("some.library").warning("slow path 1")
    assert found.take() == []


def test_pythons_own_warnings_are_among_them(found: Warnings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("this will go away", UserWarning, stacklevel=1)
    assert found.take() == ["UserWarning: this will go away"]
