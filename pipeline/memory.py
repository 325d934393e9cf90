"""Planning memory before it is used: a checkpoint's bytes from its headers, and workers on one device."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import ModelError
from pipeline.flops import ModelShape

if TYPE_CHECKING:
    import torch

# Bytes of a number, by safetensors' names of number formats; the others, such as U8, take one.
_FLOATING = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_WHOLE = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}

# Of a device's memory, what is left to the driver's own state, to kernels' workspaces and to gaps between
# blocks of an allocator. Our choice.
RESERVED_BYTES = 2 * 2**30

# What a container may use and uses, by the two versions of Linux's control groups.
_CONTAINER = tuple(
    (Path("/sys/fs/cgroup") / limit, Path("/sys/fs/cgroup") / usage)
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )
)

_LARGEST_HEADER = 100_000_000  # as safetensors itself


class Stored(NamedTuple):
    """A tensor in a safetensors file."""

    dtype: str  # safetensors' name, such as "BF16"
    numbers: int

    @property
    def floating(self) -> bool:
        """Whether loading converts it to the model's number format."""
        return self.dtype in _FLOATING

    def bytes_in(self, itemsize: int) -> int:
        """Memory of it where floating-point numbers take `itemsize` bytes each."""
        return self.numbers * (itemsize if self.floating else _WHOLE.get(self.dtype, 1))


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint by name, from the headers of its safetensors files; no weights are read.

    Of `model.safetensors` or of the files that its index names, as transformers chooses them. Empty where
    there is neither, or a header cannot be read: what is wrong with it is for the one who loads it to say.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    try:
        if whole.is_file():
            files = [whole]
        elif not index.is_file():
            return {}
        else:
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            files = [folder / name for name in sorted(set(named))]
        return {
            name: Stored(entry["dtype"], math.prod(entry["shape"]))
            for file in files
            for name, entry in _header(file).items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file: JSON behind its length in eight bytes."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header: dict[str, dict[str, Any]] = json.loads(stream.read(length))
    return header


def free_bytes(device: torch.device) -> int | None:
    """Memory that nothing holds on a GPU or, for a CPU, on its host; None where it cannot be asked for."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return host_bytes() if device.type == "cpu" else None


def host_bytes() -> int:
    """Memory of this machine, or of the container around this process, that is free."""
    import psutil  # type: ignore[import-untyped]

    free = int(psutil.virtual_memory().available)
    for limit, usage in _CONTAINER:
        try:
            most, used = limit.read_text().strip(), int(usage.read_text())
        except (OSError, ValueError):
            continue
        if most.isdigit():
            free = min(free, max(0, int(most) - used))
    return free


def refuse_too_large(
    name: str, tensors: Collection[Stored], dtype: torch.dtype, device: torch.device
) -> None:
    """Errors: ModelError, with the arithmetic, where these tensors of a checkpoint do not fit on a device."""
    needed = sum(tensor.bytes_in(dtype.itemsize) for tensor in tensors)
    free = free_bytes(device)
    if free is None or needed <= free:
        return
    numbers = sum(tensor.numbers for tensor in tensors)
    raise ModelError(
        f"{name} does not fit on {device}: its {numbers:,} weights take {gib(needed)} as "
        f"{str(dtype).removeprefix('torch.')} ({dtype.itemsize} bytes each), and {gib(free)} are free. A "
        "model is loaded whole on one device, never spread over several: take a device with more memory, "
        "fewer workers on it, or a smaller model."
    )


def gib(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.1f} GiB"


@dataclass(frozen=True)
class WorkerMemory:
    """What a worker takes of its device at most, in bytes."""

    weights: int  # of the model and the aligned encoder
    kept: int  # prefixes, and features of videos, up to their limits
    working: int  # while it encodes a video or answers a pack of questions (`working_bytes`)
    reserved: int = RESERVED_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kept + self.working + self.reserved

    def fitting(self, device_bytes: int) -> int:
        """How many such workers fit on a device with so much memory."""
        return device_bytes // self.total

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "kept prefixes and features": self.kept,
            "encoding and answering": self.working,
            "reserve": self.reserved,
        }
        return f"{gib(self.total)} ({', '.join(f'{name} {gib(size)}' for name, size in parts.items())})"


def working_bytes(
    shape: ModelShape, *, frames: int, tokens: int, itemsize: int, batch: int = 1, frames_per_call: int = 8
) -> int:
    """The peak beyond weights and what is kept, estimated from shapes alone.

    tokens: of the longest prompt, visual tokens included. itemsize: bytes of a number. batch: questions in a
    pack. Counted is the unpruned model, as baselines run: keys and values of all layers, and the widest
    moment of one layer. Of the vision side: a run of frames in the tower, and all frames of a video at once
    in the float32 layers of the aligned encoder. Our formula.
    """
    hidden, mlp = shape.hidden, shape.mlp_width
    kept = 2 * shape.layers * shape.kv_width * itemsize
    # Residual, normed and float32 copy of it; then gate, up and their product, or queries, keys and values.
    stream = hidden * (3 * itemsize + 4)
    widest = max(3 * mlp, 3 * hidden + 2 * shape.kv_width) * itemsize
    scores = 2 * shape.heads * 4
    answering = batch * tokens * (kept + stream + widest + scores)
    if shape.vision is None:
        return answering
    vision = shape.vision
    features = frames * vision.patches * (vision.width + hidden) * itemsize
    run = frames_per_call * vision.patches * (5 * vision.width + 2 * vision.mlp_width) * itemsize
    # Float32 whatever the model computes in. Without a layer beyond the tower's only the copy is made.
    widths = 4 * vision.width + (2 * vision.mlp_width if vision.extra_layers else 0)
    embedding = frames * vision.patches * widths * 4
    return max(answering, features + max(run, embedding))


def refuse_crowded(worker: WorkerMemory, workers: int, device_bytes: int) -> None:
    """Errors: ModelError, with the arithmetic, where so many such workers do not fit on one device."""
    fitting = worker.fitting(device_bytes)
    if workers > fitting:
        raise ModelError(
            f"{workers} workers share a GPU of {gib(device_bytes)}, but each takes up to {worker}: "
            f"{fitting or 'not even 1'} fit{'s' if fitting < 2 else ''}. Run fewer workers on it, or smaller "
            "packs of questions."
        )
