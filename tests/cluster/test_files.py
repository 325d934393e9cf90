"""The files in docker/: who is told which secret, and what they start."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from tests.cluster.processes import ROOT
from tuner.cli.main import app

pytestmark = pytest.mark.quick

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
JOB = yaml.safe_load((DOCKER / "rayjob.yaml").read_text())["spec"]
RUN = {option for parameter in get_command(app).commands["run"].params for option in parameter.opts}
OURS = ("mlflow", "head", "worker", "worker-gpu")


def secrets_of(service: str) -> dict[str, str]:
    """Where the service finds which of the secrets."""
    given = [
        (entry, entry) if isinstance(entry, str) else (entry["target"], entry["source"])
        for entry in service_of(service)
    ]
    return dict(given)


def service_of(service: str) -> list[str | dict[str, str]]:
    return list(SERVICES[service].get("secrets", []))


def test_each_service_is_given_the_secrets_it_needs_and_no_other() -> None:
    assert {name: secrets_of(name) for name in SERVICES} == {
        "postgres": {
            "postgres_password": "postgres_password",
            "tuner_database_password": "tuner_database_password",
            "mlflow_database_password": "mlflow_database_password",
        },
        "mlflow": {"database_password": "mlflow_database_password", "mlflow_password": "mlflow_password"},
        "head": {
            "database_password": "tuner_database_password",
            "mlflow_password": "mlflow_password",
            "ray_auth_token": "ray_auth_token",
            "s3_credentials": "s3_credentials",
        },
        "worker": {"ray_auth_token": "ray_auth_token", "s3_credentials": "s3_credentials"},
        "worker-gpu": {"ray_auth_token": "ray_auth_token", "s3_credentials": "s3_credentials"},
        "s3": {"s3_server": "s3_server"},
        "s3-bucket": {},
    }


def test_no_environment_and_no_command_line_holds_a_secret() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD$|TOKEN$|SECRET|KEY$", name), name
            assert "$" not in value
        assert set(re.findall(r"\$\{(\w+)", str(service.get("command", "")))) <= {"WORKER_CPUS"}


def test_workers_are_told_neither_the_records_nor_mlflow() -> None:
    for name in ("worker", "worker-gpu"):
        assert not {"TUNER_DATABASE", "MLFLOW_TRACKING_URI"} & set(SERVICES[name]["environment"])


def test_ray_asks_for_its_token_and_mlflow_for_a_password() -> None:
    for name in ("head", "worker", "worker-gpu"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_auth_token"
    assert "--app-name basic-auth" in SERVICES["mlflow"]["command"]


def test_ports_are_open_on_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_services_are_started_again_and_watched() -> None:
    for name, service in SERVICES.items():
        if name != "s3-bucket":  # ends when its bucket is there
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"], name


def test_a_worker_tells_ray_of_the_processors_it_may_take() -> None:
    worker = SERVICES["worker"]
    assert f"--num-cpus {worker['cpus']} " in worker["command"]


def test_the_object_store_fits_into_shared_memory() -> None:
    for name in ("head", "worker", "worker-gpu"):
        (asked,) = re.findall(r"--object-store-memory (\d+)", SERVICES[name]["command"])
        assert int(asked) < 0.9 * int(SERVICES[name]["shm_size"].removesuffix("gb")) * 2**30


def test_our_processes_have_no_rights_of_the_system() -> None:
    for name in OURS:
        assert SERVICES[name]["cap_drop"] == ["ALL"]
        assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    for group in (JOB["rayClusterSpec"]["headGroupSpec"], *JOB["rayClusterSpec"]["workerGroupSpecs"]):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"]


def test_the_rayjob_tells_the_head_alone_and_repeats_no_mistake() -> None:
    cluster = JOB["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (worker,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert worker["env"] == [{"name": "HF_HOME", "value": "/work/huggingface"}]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    secret = {entry["name"] for entry in head["env"] if "secretKeyRef" in str(entry)}
    assert secret == {"TUNER_DATABASE", "MLFLOW_TRACKING_URI"}
    assert JOB["backoffLimit"] == 0
    assert set(re.findall(r"--[a-z-]+", JOB["entrypoint"])) <= RUN


@pytest.mark.parametrize(("code", "tries"), [(0, 1), (1, 3), (2, 1), (130, 1), (143, 1)])
def test_the_rayjob_tries_again_what_may_go_away(code: int, tries: int, tmp_path: Path) -> None:
    for name, text in (("tuner", f"echo tried; exit {code}"), ("sleep", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", "-c", JOB["entrypoint"]], env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout.count("tried")) == (code, tries)


def test_the_entrypoint_writes_what_clients_read_for_the_user_alone(tmp_path: Path) -> None:
    (tmp_path / "database_password").write_text("abc")
    (tmp_path / "mlflow_password").write_text("def")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SECRETS": str(tmp_path),
        "PGPASSFILE": str(tmp_path / ".pgpass"),
    }
    command = ["sh", DOCKER / "entrypoint.sh", "env"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "abc" not in printed
    assert "def" not in printed
    assert (tmp_path / ".pgpass").read_text() == "*:*:*:*:abc\n"
    assert "mlflow_tracking_password = def" in (tmp_path / ".mlflow" / "credentials").read_text()
    for file in (tmp_path / ".pgpass", tmp_path / ".mlflow" / "credentials"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_all_secrets_of_the_compose_file_are_made_and_kept(tmp_path: Path) -> None:
    script = tmp_path / "secrets.sh"
    script.write_text((DOCKER / "secrets.sh").read_text())
    before = {}
    for again in (False, True):
        subprocess.run(["sh", script], check=True)
        made = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
        assert {Path(entry["file"]).name for entry in COMPOSE["secrets"].values()} | {"s3_key"} == set(made)
        if not again:
            before = made
    assert made == before
    assert len({text for text in made.values() if re.fullmatch("[0-9a-f]{64}", text)}) == 6
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
