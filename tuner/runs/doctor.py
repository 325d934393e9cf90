"""What a study needs of a machine, looked at without a study. Nothing is downloaded or left behind."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from pipeline.finding import Finding
from pipeline.memory import gib, host_bytes
from tuner.errors import UserError, without_passwords

PACKAGE = "adatp-tuner"
# Packages without which nothing is computed; their versions are shown beside the ranges that were tested.
SHOWN = ("torch", "transformers", "numpy", "av", "optuna", "ray", "mlflow")
# Below that a study of any size has no room. Our choice.
LEAST_MEMORY = 4 * 2**30
LEAST_DISK = 5 * 2**30
# That ask the Hub for nothing.
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def examine(
    *,
    database: str | None = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
    address: str | None = None,
) -> Iterator[Finding]:
    """One by one, as they come. database, storage, tracking_uri, address: asked where they are named."""
    yield Finding("python", True, platform.python_version(), "3.11 or newer")
    yield from versions()
    yield device()
    yield from memory()
    yield from decoders()
    yield hub()
    for name, place, ask, advice in (
        ("database", database, _database, "Check the URL, the server, and what it lets you do."),
        (
            "storage",
            storage,
            _storage,
            "Check its name, the credentials and the rights: GetObject, PutObject.",
        ),
        ("MLflow", tracking_uri, _mlflow, "Check the address; a study goes on without a server: tuner sync."),
        ("Ray cluster", address, _cluster, "Start it with `ray start --head`, or leave --address out."),
    ):
        if place is not None:
            yield _reached(name, place, ask, advice)


def versions() -> Iterator[Finding]:
    """The packages that matter, each with the range that this version was made for."""
    asked = (
        {requirement.name: requirement for requirement in map(Requirement, requires(PACKAGE) or ())}
        if _installed(PACKAGE)
        else {}
    )
    for name in SHOWN:
        wanted = asked.get(name)
        allowed = str(wanted.specifier) if wanted is not None else "any"
        here = _installed(name)
        passed = here is not None and (
            wanted is None or wanted.specifier.contains(Version(here), prereleases=True)
        )
        advice = f'pip install "{name}{allowed if wanted is not None else ""}"'
        yield Finding(name, passed, here or "not installed", allowed, advice)


def device() -> Finding:
    """The GPU that torch computes on; where the machine has one, torch has to see it."""
    allowed = "torch sees the GPUs that there are"
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries cannot be loaded
        return Finding("GPU", False, f"torch cannot be loaded: {error}", allowed, "pip install torch")
    nodes = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
        named = ", ".join(f"{device.name} ({gib(device.total_memory)})" for device in devices)
        half = "" if torch.cuda.is_bf16_supported() else "; no bfloat16, so models run in float16"
        return Finding("GPU", True, f"{named}; CUDA {torch.version.cuda}, driver {_driver()}{half}", allowed)
    if nodes:
        return Finding(
            "GPU",
            False,
            f"{len(nodes)} GPUs on this machine, driver {_driver()}, but torch {torch.__version__} sees none",
            allowed,
            "Install a torch that was built for CUDA, and a driver that is new enough for it: pytorch.org.",
        )
    return Finding("GPU", True, f"none: models run on {os.cpu_count()} CPU cores, in float32", allowed)


def memory() -> Iterator[Finding]:
    """What is free on the host and in the working directory, where records and vision features lie."""
    free = host_bytes()
    yield Finding(
        "memory",
        free >= LEAST_MEMORY,
        f"{gib(free)} free",
        f"{gib(LEAST_MEMORY)} or more",
        "End other programs, or use fewer workers (--workers 1) and smaller stores (--cache-memory).",
    )
    folder = Path.cwd()
    room = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    yield Finding(
        "disk",
        writable and room >= LEAST_DISK,
        f"{gib(room)} free in {folder}{'' if writable else ', which cannot be written'}",
        f"a folder that can be written, {gib(LEAST_DISK)} or more",
        "Work in another folder, or keep the vision features elsewhere: --storage.",
    )


def decoders() -> Iterator[Finding]:
    """PyAV with FFmpeg's libraries, which reads every video; decord, which is faster where it can."""
    try:
        import av
    except (ImportError, OSError) as error:
        yield Finding("PyAV", False, f"cannot be loaded: {error}", "h264, hevc, vp9, av1", "pip install av")
        return
    codecs = [name for name in ("h264", "hevc", "vp9", "av1") if name in av.codecs_available]
    libraries = f"libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"
    yield Finding(
        "PyAV",
        len(codecs) == 4,
        f"{av.__version__}, {libraries}, {', '.join(codecs)}",
        "h264, hevc, vp9, av1",
        "Install PyAV's own wheel, which brings FFmpeg: pip install --force-reinstall --only-binary av av",
    )
    try:
        found, passed = str(import_module("decord").__version__), True
    except ImportError:
        found, passed = "not installed: PyAV alone decodes", platform.machine() not in ("x86_64", "AMD64")
    except OSError as error:  # a library of it is missing
        found, passed = f"cannot be loaded: {error}", False
    yield Finding("decord", passed, found, "where there is a wheel for it", "pip install decord")


def hub() -> Finding:
    """Whether checkpoints that are named by id may be downloaded, and where they are kept."""
    from huggingface_hub import constants

    offline = [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    found = f"checkpoints are kept in {constants.HF_HUB_CACHE}"
    if not offline:
        return Finding("Hugging Face Hub", True, f"{found} and downloaded where missing", "any")
    there = len(list(Path(constants.HF_HUB_CACHE).glob("models--*")))
    return Finding(
        "Hugging Face Hub",
        True,
        f"{found}; {', '.join(offline)}: only the {there} that are there are used",
        "any",
    )


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    return next((word for word in text.split() if word[:1].isdigit() and "." in word), "unknown")


def _reached(name: str, place: str, ask: Callable[[str], str], advice: str) -> Finding:
    allowed = "answers"
    try:
        return Finding(name, True, ask(place), allowed)
    except UserError as error:
        told = str(error)
    # Whatever a server or its client says is what the user has to know.
    except Exception as error:  # noqa: BLE001
        told = str(error).strip() or type(error).__name__
    return Finding(name, False, without_passwords(told).splitlines()[0], allowed, advice)


def _database(url: str) -> str:
    from tuner.records.database import parse_url
    from tuner.records.store import Store

    file = parse_url(url).database
    if parse_url(url).get_backend_name() == "sqlite" and not Path(file or "").is_file():
        above = next(parent for parent in Path(file or "").absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UserError(f"{file} is not there yet, and {above} is no folder that can be written")
        return f"{file} is not there yet: `tuner run` makes it"
    with Store.open(url, create=False) as store:
        studies = store.study_names()
        return f"{store.url} holds {', '.join(studies) or 'no study'}"


def _storage(place: str) -> str:
    from tuner.evaluation.storage import try_storage

    return try_storage(place)


def _mlflow(address: str) -> str:
    from tuner.export.mlflow_mirror import MlflowMirror

    MlflowMirror(address).reach()
    return f"{without_passwords(address)} answers"


def _cluster(address: str) -> str:
    from tuner.evaluation.evaluator import refused_address
    from tuner.executors.ray_tune import cluster_resources

    if refusal := refused_address(address, "--address"):
        raise UserError(refusal)
    return cluster_resources(address)
