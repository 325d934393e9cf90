"""Which Ray cluster a run goes to, and what it says when it does not get there."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from ray.exceptions import AuthenticationError

from tuner.errors import UserError
from tuner.evaluation.evaluator import refused_address
from tuner.evaluation.failures import EvaluationError
from tuner.executors import ray_tune


@pytest.mark.parametrize("address", ["auto", "head:6379", "[::1]:6379", "192.0.2.2:6379", "local"])
def test_addresses_of_clusters_this_machine_is_part_of_are_taken(address: str) -> None:
    assert refused_address(address, "--address") is None


def test_where_nobody_answers_it_says_so_at_once() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"There is no Ray cluster at '{address}': .*refused"):
            ray_tune._connect(address)


def refused(*_: Any, **__: Any) -> None:
    """As Ray does to a driver that does not send the cluster's token."""
    cause = RuntimeError("Failed to connect to GCS. Last connection error: ... AuthenticationError: RPC")
    raise ConnectionError("Failed to connect to Ray cluster at 192.0.2.2:6379") from cause


def without_token(*_: Any, **__: Any) -> None:
    raise AuthenticationError("Token authentication is enabled but no authentication token was found")


@pytest.mark.parametrize("init", [refused, without_token])
def test_a_cluster_that_wants_its_token_is_told_from_one_that_is_not_there(
    init: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(
        UserError, match=r"The Ray cluster at 'auto' requires its token: set RAY_AUTH_MODE=token"
    ):
        ray_tune._connect("auto")


def test_a_machine_that_is_too_busy_for_ray_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any, **__: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", slow)
    with pytest.raises(EvaluationError, match="Ray did not start on this machine"), ray_tune._ray(1, None):
        pass
