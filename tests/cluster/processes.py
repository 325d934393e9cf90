"""The services of docker/compose.yaml as processes of this machine, each in a namespace of its own (network,
processes) where that is permitted, else side by side.

Commands, environments and secrets are those of compose.yaml; names of services become addresses.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
NODES = ("postgres", "mlflow", "head", "worker-1", "worker-2")
# What the image sets.
_IMAGE = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONUNBUFFERED": "1"}
# Set for all processes of the topology: by it they are found.
_MARK = "ADATP_TOPOLOGY"
_SPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


class Seen(NamedTuple):
    """A process, as everybody on its machine may see it."""

    node: str
    command: str
    environment: str


def fetch(page: str | urllib.request.Request, timeout: float = 10) -> bytes:
    """What a server answers; closes the connection. Errors: OSError; HTTPError where it refuses."""
    try:
        with urllib.request.urlopen(page, timeout=timeout) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        error.close()
        raise


class Topology:
    """PostgreSQL, MLflow, a Ray head and two workers, from `start` to `stop`; `folder` has all they leave."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        # Short: sockets are made below it.
        self.folder = Path(tempfile.mkdtemp(prefix="cluster"))
        self.folder.chmod(0o755)
        self.separate = os.geteuid() == 0 and _works([*_SPACE, "--net", "true"])
        self.seen: set[Seen] = set()
        # Names with their labels.
        self.metrics: set[str] = set()
        self._number = os.getpid() % 200
        self._addresses: dict[str, str] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    # Names and addresses

    def address(self, node: str) -> str:
        return self._addresses[node]

    def _resolved(self, text: str) -> str:
        for name in ("postgres", "mlflow", "head"):
            text = re.sub(rf"(?<=[@/ ,]){name}(?=[:/])", self._addresses[name], text)
        return text

    def environment(self, node: str) -> dict[str, str]:
        """What a process of the node gets: as in its container, and what this machine needs."""
        home, secrets = self.folder / "home" / node, self.folder / "mounted" / node
        given = COMPOSE.get(_service(node), {}).get("environment", {})
        own = {
            name: self._resolved(value).replace("/run/secrets", str(secrets)) for name, value in given.items()
        }
        return {
            **_IMAGE,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), *_postgresql(), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "PGPASSFILE": str(home / ".pgpass"),
            "SECRETS": str(secrets),
            "ARTIFACTS": str(self.folder / "artifacts"),
            "RAY_TMPDIR": str(self.folder / "ray"),
            "OMP_NUM_THREADS": "1",
            # As docs/cluster.md advises where other programs compete for the CPUs.
            "RAY_worker_niceness": "0",
            "RAY_worker_register_timeout_seconds": "600",
            _MARK: f"{self.mark}.{node}",
            **own,
        }

    # Start and end

    def start(self) -> None:
        """Errors: RuntimeError, with what the service printed, where one does not come up."""
        shutil.copy(ROOT / "docker" / "secrets.sh", self.folder)
        subprocess.run(["sh", self.folder / "secrets.sh"], check=True)
        for place, node in enumerate(NODES, 2):
            self._addresses[node] = self._separated(node, place) if self.separate else "127.0.0.1"
            (self.folder / "home" / node).mkdir(parents=True)
            self._mount(node)
        for name in ("artifacts", "ray", "work"):
            (self.folder / name).mkdir()
        self._watching.start()
        self._start_postgresql()
        self._serve("mlflow")
        self._until("mlflow", self._is_healthy)
        self._serve("head")
        self._until("head", lambda: self._nodes() >= 1, restarts=True)
        self._serve("worker-1")
        self._serve("worker-2")
        # A busy machine may take longer for the other, which may join later.
        self._until("worker-1", lambda: self._nodes() >= 2, restarts=True)

    def stop(self) -> None:
        self._stopping.set()
        for process in self._processes.values():
            process.send_signal(signal.SIGKILL if self.separate else signal.SIGTERM)
        for pid, _ in self._ours():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes.values():
            process.wait()
        if self.separate:
            for node in self._addresses:
                subprocess.run(["ip", "netns", "del", self._namespace(node)], check=False)
            subprocess.run(["ip", "link", "del", self._bridge], check=False)
        if self._watching.is_alive():
            self._watching.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    def begin(
        self, node: str, command: Sequence[str], folder: Path | None = None, output: int | IO[str] = PIPE
    ) -> subprocess.Popen[str]:
        """Starts a command on the node, as `docker compose exec` does.

        folder: where it runs; None: the folder `work`. output: takes all that it prints.
        """
        folder = folder or self.folder / "work"
        if self.separate:
            inside = self._processes[node].pid
            (child,) = Path(f"/proc/{inside}/task/{inside}/children").read_text().split()
            # Into another namespace of mounts it goes by the root folder.
            inside_of = ["nsenter", "--target", child, "--pid", "--mount", "--net"]
            command = [*inside_of, "env", "-C", str(folder), *command]
        return subprocess.Popen(
            command,
            env=self.environment(node),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, node: str, command: Sequence[str], *, check: bool = True) -> str:
        """What a command on the node prints. Errors: AssertionError where it fails and `check` is set."""
        process = self.begin(node, command)
        printed, _ = process.communicate(timeout=1800)
        with (self.folder / "commands.log").open("a") as log:
            log.write(f"{shlex.join(command)}\n{printed}\n")
        assert not check or process.returncode == 0, f"{shlex.join(command)}\n{printed}{self.logs()}"
        return printed

    def logs(self) -> str:
        """The last lines of each service."""
        files = sorted(self.folder.glob("*.log"))
        return "".join(f"--- {file.stem}\n{file.read_text(errors='replace')[-2000:]}\n" for file in files)

    # Faults

    def processes(self, node: str, *names: str) -> list[int]:
        """Those of a node whose command begins with one of the names."""
        return [pid for pid, item in self._ours() if item.node == node and item.command.startswith(names)]

    def kill(self, node: str) -> None:
        """As if its machine's power was cut. Ray's nodes are started again, as compose.yaml says."""
        process = self._processes[node]
        process.kill()
        if not self.separate:
            for pid, item in self._ours():
                if item.node == node:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        process.wait()

    def serve_mlflow(self) -> None:
        """After it was killed."""
        self._serve("mlflow")
        self._until("mlflow", self._is_healthy)

    def until_whole(self) -> None:
        """Returns once the head and both nodes are there."""
        self._until("head", lambda: self._nodes() >= 3, restarts=True)

    @contextmanager
    def cut_off(self, node: str) -> Iterator[None]:
        """Takes the node off the network until the end of the block; only where namespaces are separate."""
        outer = self._outer(node)
        subprocess.run(["ip", "link", "set", outer, "down"], check=True)
        try:
            yield
        finally:
            subprocess.run(["ip", "link", "set", outer, "up"], check=True)

    def url(self) -> str:
        """Of the records, with the password."""
        password = (self.folder / "secrets" / "tuner_database_password").read_text()
        return f"postgresql://tuner:{password}@{self._addresses['postgres']}/tuner"

    # Namespaces

    def _outer(self, node: str) -> str:
        """The bridge's end of the node's link."""
        return f"o{self._number}n{NODES.index(node) + 2}"

    @property
    def _bridge(self) -> str:
        return f"adatp{self._number}"

    def _namespace(self, node: str) -> str:
        return f"{self._bridge}-{node}"

    def _separated(self, node: str, place: int) -> str:
        """Makes a network namespace, joined to the others by a bridge; returns its address."""
        net = f"10.213.{self._number}"
        name, inner, outer = self._namespace(node), f"i{self._number}n{place}", self._outer(node)
        commands = [
            f"netns add {name}",
            f"link add {outer} type veth peer name {inner} netns {name}",
            f"link set {outer} master {self._bridge} up",
            f"-n {name} addr add {net}.{place}/24 dev {inner}",
            f"-n {name} link set {inner} up",
            f"-n {name} link set lo up",
            # Nothing leaves the bridge; Ray finds its own address by the route.
            f"-n {name} route add default via {net}.1",
        ]
        if place == 2:
            commands[:0] = [
                f"link add {self._bridge} type bridge",
                f"addr add {net}.1/24 dev {self._bridge}",
                f"link set {self._bridge} up",
            ]
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)
        return f"{net}.{place}"

    # Services

    def _mount(self, node: str) -> None:
        """The secrets that compose.yaml gives the service, and no other."""
        folder = self.folder / "mounted" / node
        folder.mkdir(parents=True)
        for entry in COMPOSE[_service(node)].get("secrets", []):
            source, target = (entry, entry) if isinstance(entry, str) else (entry["source"], entry["target"])
            shutil.copy(self.folder / "secrets" / source, folder / target)

    def _serve(self, node: str) -> None:
        command = shlex.split(self._resolved(" " + COMPOSE[_service(node)]["command"]))
        command = [re.sub(r"\$\{\w+:-(\w+)\}", "2", part) for part in command]  # WORKER_CPUS
        command = [part.replace("/artifacts", str(self.folder / "artifacts")) for part in command]
        if command[0] == "ray" and not self.separate:
            command += ["--node-ip-address", "127.0.0.1", "--dashboard-agent-listen-port", "0"]
            command += ["--metrics-export-port", "0"] * (node != "head")
        self._spawn(node, ["sh", str(ROOT / "docker" / "entrypoint.sh"), *command])

    def _spawn(self, node: str, command: Sequence[str], **options: Any) -> None:
        if self.separate:
            command = [*_SPACE, "ip", "netns", "exec", self._namespace(node), *command]
        with (self.folder / f"{node}.log").open("ab") as log:
            self._processes[node] = subprocess.Popen(
                command,
                env=self.environment(node),
                cwd=self.folder / "work",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )

    def _start_postgresql(self) -> None:
        data, secrets = self.folder / "postgres", self.folder / "mounted" / "postgres"
        data.mkdir()
        # PostgreSQL refuses to run as root.
        as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if as_user:
            shutil.chown(data, "postgres")
        environment = self.environment("postgres")

        def call(*command: str, **more: str) -> None:
            found = subprocess.run(
                [*as_user, *command],
                env=environment | more,
                cwd=data,
                capture_output=True,
                text=True,
                check=False,
            )
            if found.returncode:
                raise RuntimeError(found.stdout + found.stderr)

        inside = str(data / "data")
        scram = ["--auth-host=scram-sha-256", "--auth-local=scram-sha-256"]
        as_given = ["-U", "postgres", f"--pwfile={secrets}/postgres_password", "--encoding=UTF8"]
        call("initdb", "--no-sync", *scram, *as_given, "-D", inside)
        with (data / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")
        self._spawn("postgres", [*as_user, "postgres", "-D", inside, "-h", "0.0.0.0", "-k", str(data), "-F"])
        # A file, as its users should have it: what is in an environment is looked for secrets.
        passwords = self.folder / "home" / "administrator.pgpass"
        passwords.write_text(f"*:*:*:postgres:{(secrets / 'postgres_password').read_text()}\n")
        passwords.chmod(0o600)
        if as_user:
            shutil.chown(passwords, "postgres")
        self._until(
            "postgres", lambda: _works(["pg_isready", "-h", self._addresses["postgres"]], environment)
        )
        sql = str(ROOT / "docker" / "databases.sql")
        # Read by psql itself: nobody else has the right to.
        script = f"psql -v ON_ERROR_STOP=1 -q -h {data} -U postgres -f {sql}"
        call(*shlex.split(script), PGPASSFILE=str(passwords))

    def _nodes(self) -> int:
        """Nodes of the cluster that live."""
        token = (self.folder / "secrets" / "ray_auth_token").read_text()
        page = urllib.request.Request(f"http://{self._addresses['head']}:8265/nodes?view=summary")
        page.add_header("Authorization", f"Bearer {token}")
        try:
            nodes = json.loads(fetch(page, 5))["data"]["summary"]
        except (OSError, KeyError, ValueError):
            return 0
        return sum(node.get("raylet", {}).get("state") == "ALIVE" for node in nodes)

    def _is_healthy(self) -> bool:
        try:
            fetch(f"http://{self._addresses['mlflow']}:5000/health", 5)
        except OSError:
            return False
        return True

    def _until(self, node: str, ready: Callable[[], bool], *, restarts: bool = False) -> None:
        end = time.monotonic() + 600
        while not ready():
            ended = self._processes[node].poll() is not None and not restarts
            if ended or time.monotonic() > end:
                raise RuntimeError(f"{node} did not start:\n{self.logs()}")
            time.sleep(0.3)

    # What others see

    def _ours(self) -> list[tuple[int, Seen]]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().decode(errors="replace")
                node = re.search(rf"(?:^|\0){_MARK}={self.mark}\.([\w-]+)", environment)
                if node is not None:
                    command = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                    found.append((int(folder.name), Seen(node[1], command, environment)))
            except OSError:
                continue  # it has ended
        return found

    def _look_at_metrics(self) -> None:
        with suppress(OSError, KeyError):
            page = fetch(f"http://{self._addresses['head']}:8080/metrics", 2)
            self.metrics.update(re.findall(r"^ray_tuner_.+(?= \S+$)", page.decode(), flags=re.MULTILINE))

    def _watch(self) -> None:
        """Remembers what processes and metrics show, and restarts as compose.yaml's policy."""
        while not self._stopping.wait(0.5):
            self._look_at_metrics()
            self.seen.update(item for _, item in self._ours())
            for node, process in list(self._processes.items()):
                if (
                    node.startswith(("worker", "head"))
                    and process.poll() is not None
                    and not self._stopping.is_set()
                ):
                    self._serve(node)


def _service(node: str) -> str:
    return re.sub(r"-\d$", "", node)


def _postgresql() -> list[str]:
    """Where distributions put what is no everyday command."""
    return [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


def _works(command: Sequence[str], environment: Mapping[str, str] | None = None) -> bool:
    try:
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def missing() -> str:
    """What this machine lacks for the topology; "" where it lacks nothing."""
    search = os.pathsep.join([os.environ["PATH"], *_postgresql()])
    programs = [
        name for name in ("initdb", "postgres", "psql", "openssl") if shutil.which(name, path=search) is None
    ]
    if programs:
        return f"{', '.join(programs)} not installed"
    try:
        import flask_wtf  # noqa: F401
        import psycopg  # noqa: F401
        import ray.dashboard.modules.job.cli  # noqa: F401
    except ImportError as error:
        return f"the extra `cluster` is not installed ({error})"
    return ""


def running() -> Iterator[Topology]:
    """All of it, for a fixture; the test is skipped where something is missing."""
    if lacking := missing():
        pytest.skip(lacking)
    made = Topology()
    try:
        made.start()
        yield made
    finally:
        made.stop()
