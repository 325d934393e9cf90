"""How much memory a worker gives to what it keeps of videos, so that no trial computes it again.

Prefixes (system prompt and video through the layers before the first pruning) lie on the model's device,
vision features in host memory. The shares are our choice: what they leave is for the forwards themselves,
for decoding, and for other processes.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from typing import TYPE_CHECKING, NamedTuple

from pipeline.memory import host_bytes

if TYPE_CHECKING:
    import torch

NO_MEMORY = "memory does not suffice."

# Of a GPU's memory that is free once the model is loaded: for prefixes.
DEVICE_SHARE = 0.5

# Of the host's free memory, shared by all workers: for vision features of workers on GPUs.
HOST_SHARE = 0.25

# Where the models themselves run on the host, of its free memory: for prefixes, and as much for features.
CPU_SHARE = 0.05


class StoreBytes(NamedTuple):
    """Bytes that a worker's stores hold at most."""

    prefixes: int
    clips: int


def store_bytes(
    device: torch.device, *, workers: int = 1, gpu_share: float = 1.0, asked: int | None = None
) -> StoreBytes:
    """The sizes of a worker's stores, from what is free now that its model is loaded.

    workers: processes that share the host's memory. gpu_share: of one GPU, which is this worker's. asked: the
    size of each store, where the user named one.
    """
    if asked is not None:
        return StoreBytes(asked, asked)
    host = host_bytes() / workers
    if device.type != "cuda":
        return StoreBytes(int(CPU_SHARE * host), int(CPU_SHARE * host))
    room = DEVICE_SHARE * _device_bytes(device, min(1.0, gpu_share or 1.0))
    return StoreBytes(int(room), int(HOST_SHARE * host))


def _device_bytes(device: torch.device, share: float) -> int:
    """What is free of a worker's share of a GPU: the share itself, less what this process holds."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return max(0, min(free, int(share * total) - torch.cuda.memory_reserved(device)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the GPU or of the machine did not suffice; torch raises it in three ways."""
    names = {class_.__name__ for class_ in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def trim() -> None:
    """Gives memory that was freed back to the system, where the C library is glibc.

    It keeps what forwards have freed, up to a GiB between the tensors that stay: the same again for each
    worker. A few milliseconds, so not after every answer.
    """
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def free_memory() -> None:
    """Releases the memory that a failed forward left behind."""
    gc.collect()
    # Without torch there is nothing to release, and importing it takes seconds.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
