"""`make test-cluster`: a whole study through the topology of docker/compose.yaml, by the commands of
docs/cluster.md.

Not part of `make test`: it takes minutes and wants PostgreSQL and the extra `cluster`.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.processes import ROOT, Topology, fetch, running
from tests.small_demo import small_study

DOC = (ROOT / "docs" / "cluster.md").read_text()


def documented(beginning: str) -> list[str]:
    """The only command of the documentation that begins so."""
    (found,) = re.findall(rf"^ {{4}}{re.escape(beginning)} (.+)$", DOC, flags=re.MULTILINE)
    return shlex.split(found)


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    yield from running()


@pytest.fixture(scope="module")
def study(topology: Topology) -> Path:
    return small_study(topology.folder / "work", videos=4) / "small"


@pytest.fixture(scope="module")
def finished(topology: Topology, study: Path) -> Path:
    """A study run by both ways of the documentation, and all that it left."""
    inside = documented("docker compose -f docker/compose.yaml exec head")
    assert inside[:2] == ["tuner", "run"]
    inside[inside.index("demo")] = str(study)
    topology.run("head", [*inside, "--trials", "1", "--accept-weak-baseline"])

    submitted = documented("ray job submit")
    submitted = [part.replace("HEAD", topology.address("head")) for part in submitted]
    submitted[submitted.index("/work/studies/mine")] = str(study)
    # From a machine that has the token and nothing else.
    fewer = ["--workers", "2", "--trials", "2", "--accept-weak-baseline", "--log-format", "json"]
    said = topology.run("worker-1", ["ray", "job", "submit", *submitted, *fewer])
    assert "succeeded" in said
    export = ["tuner", "export", "--study", "small", "--output", "best.json", "--accept-regressions"]
    topology.run("head", export)
    return study


def test_the_study_is_whole(topology: Topology, finished: Path) -> None:
    status = json.loads(topology.run("head", ["tuner", "status", "--study", "small", "--json"]))
    assert status["trials_completed"] >= 2, status
    work = topology.folder / "work"
    assert json.loads((work / "best.json").read_text())
    assert list(work.glob(".tuner/small/figures/**/report.html"))
    # The driver is the head's: no worker node ran one.
    ran = {
        item.node
        for item in topology.seen
        if "tuner run" in item.command and "job submit" not in item.command
    }
    assert ran == {"head"}


def test_mlflow_has_the_study_and_gives_it_to_nobody_without_the_password(
    topology: Topology, finished: Path
) -> None:
    server = f"http://{topology.address('mlflow')}:5000/api/2.0/mlflow/experiments/search?max_results=10"
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(server)
    assert refused.value.code == 401
    password = (topology.folder / "secrets" / "mlflow_password").read_text()
    request = urllib.request.Request(server)
    request.add_header("Authorization", "Basic " + b64encode(f"tuner:{password}".encode()).decode())
    found = json.loads(fetch(request))
    assert "small" in str(found)


def test_ray_takes_no_job_without_its_token(topology: Topology) -> None:
    address = f"http://{topology.address('head')}:8265"
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(f"{address}/api/jobs/")
    assert refused.value.code in (401, 403)
    command = ["env", "-u", "RAY_AUTH_TOKEN_PATH", "ray", "job", "submit", "--address", address, "--", "env"]
    assert "succeeded" not in topology.run("worker-1", command, check=False)


def test_postgresql_wants_a_password_from_everybody(topology: Topology) -> None:
    import psycopg

    for user in ("postgres", "tuner", "mlflow"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host=topology.address("postgres"), user=user, dbname="tuner", password="")
    # The role of one database is nobody in the other.
    password = (topology.folder / "secrets" / "mlflow_database_password").read_text()
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(host=topology.address("postgres"), user="mlflow", dbname="tuner", password=password)


def test_workers_are_told_nothing_of_the_records_and_of_mlflow(topology: Topology, finished: Path) -> None:
    of_workers = [
        item for item in topology.seen if item.node.startswith("worker") and "_Trainable" in item.command
    ]
    assert of_workers
    for worker in of_workers:
        for name in ("TUNER_DATABASE", "MLFLOW_TRACKING", "PGPASSWORD", "psycopg"):
            assert name not in worker.environment, worker.command


def test_ray_shows_the_documented_metrics(topology: Topology, finished: Path) -> None:
    """Those of mistakes and of nothing's cost excepted, which a sound run on CPUs does not have."""
    shown = {re.split("[{ ]", metric)[0] for metric in topology.metrics}
    documented = set(re.findall(r"^\| `(ray_tuner_\w+)`", DOC, flags=re.MULTILINE))
    absent = {
        "ray_tuner_failures_total",
        "ray_tuner_quarantined_questions_total",
        "ray_tuner_gpu_seconds_total",
    }
    assert absent < documented
    assert documented - absent <= shown, topology.metrics
    assert shown <= documented
    assert any('study="small"' in metric.lower() for metric in topology.metrics)


def test_no_secret_is_anywhere_but_in_the_files_it_was_given_in(topology: Topology, finished: Path) -> None:
    secrets = {file.name: file.read_text() for file in (topology.folder / "secrets").iterdir()}
    secrets = {name: text for name, text in secrets.items() if re.fullmatch("[0-9a-f]{64}", text)}
    assert len(secrets) == 6
    found = set()

    def look(where: str, content: bytes) -> None:
        found.update((name, where) for name, text in secrets.items() if text.encode() in content)

    for item in topology.seen:
        look(f"command line of {item.command[:80]!r} on {item.node}", item.command.encode())
        look(f"environment of {item.command[:80]!r} on {item.node}", item.environment.encode())
    given = ("secrets", "mounted", "home")
    for file in topology.folder.rglob("*"):
        where = file.relative_to(topology.folder)
        if where.parts[0] not in given and file.is_file() and not file.is_symlink():
            look(str(where), file.read_bytes())
    passwords = str(topology.folder / "home" / "administrator.pgpass")
    for database in ("tuner", "mlflow"):
        host = topology.address("postgres")
        command = ["pg_dump", "-h", host, "-U", "postgres", database]
        environment = topology.environment("postgres") | {"PGPASSFILE": passwords}
        dump = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
        assert b"CREATE TABLE" in dump
        look(f"database {database}", dump)
    token = (topology.folder / "secrets" / "ray_auth_token").read_text()
    jobs = urllib.request.Request(f"http://{topology.address('head')}:8265/api/jobs/")
    jobs.add_header("Authorization", f"Bearer {token}")
    look("jobs of the dashboard", fetch(jobs))
    assert not found, sorted(found)
