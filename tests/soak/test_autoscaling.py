"""Ray's own autoscaler, which starts nodes as processes here: from none up, back to none, and up again.

pytest -m soak -s tests/soak/test_autoscaling.py
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import ray

from tests.soak.slow import Slow
from tests.soak.test_nodes import STUDY, eager, report, search  # noqa: F401 - a fixture
from tuner.executors.ray_tune import RayExecutor

pytestmark = pytest.mark.soak

IDLE_MINUTES = 0.2  # after which the autoscaler takes a node away


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A head without CPUs, and up to two nodes of two CPUs where they are asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    empty = (
        "initialization_commands setup_commands head_setup_commands worker_setup_commands "
        "head_start_ray_commands worker_start_ray_commands cluster_synced_files rsync_exclude rsync_filter"
    )
    kinds = {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "node": {
            "resources": {"CPU": 2, "object_store_memory": 10**8},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    }
    settings = {
        "cluster_name": "scaling",
        "max_workers": 2,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "available_node_types": kinds,
        "head_node_type": "head",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in empty.split()},
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    # Ray demands a token where one lies in the user's home.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    environment = os.environ | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": f"{'f' * 51}00000",
        "RAY_worker_niceness": "0",
        "RAY_worker_register_timeout_seconds": "600",
    }
    short = tempfile.mkdtemp()  # paths of sockets may not be long
    command = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--num-cpus=0", "--include-dashboard=false", "--disable-usage-stats",
        f"--temp-dir={short}", f"--autoscaling-config={tmp_path / 'settings.json'}",
    ]  # fmt: skip
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        while True:
            assert head.poll() is None, (tmp_path / "head.log").read_text()
            with socket.socket() as knocking:
                if knocking.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        if head.poll() is None:
            for process in psutil.Process(head.pid).children(recursive=True):
                process.kill()
            head.kill()
            head.wait()
        shutil.rmtree(short, ignore_errors=True)


def cpus(address: str) -> float:
    """Of all nodes that are alive."""
    ray.init(address=address, log_to_driver=False)
    try:
        return float(ray.cluster_resources().get("CPU", 0))
    finally:
        ray.shutdown()


def test_nodes_come_from_none_go_and_come_again(address: str, tmp_path: Path) -> None:
    told: list[str] = []
    deadline = time.monotonic() + 300
    for number in range(2):
        while cpus(address) > 0:
            assert time.monotonic() < deadline, "the autoscaler took no node away"
            time.sleep(2)
        with closing(RayExecutor(lambda _: Slow(STUDY), 4, address=address)) as executor:
            told += search(executor, tmp_path / f"{number}.db", None, 0)
        deadline = time.monotonic() + 300
        assert cpus(address) > 0
    assert sum("0 of 4 workers, waiting for CPUs" in item for item in told) == 2
    report("Nodes come from none", told, times=2)
