"""Model families: each one adapter file. A new one is its file, its line here and its row in the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.checkpoint import Checkpoint, describe
from pipeline.errors import ModelError
from pipeline.families import llava_onevision
from pipeline.families.base import Family

if TYPE_CHECKING:
    import torch

_LOADERS = {"llava_onevision": llava_onevision.load}


def load_family(checkpoint: Checkpoint, *, device: str, dtype: str, attention: str) -> Family:
    """The model of a checkpoint, by the family its config.json names.

    device: "auto", or a torch device. dtype: "auto" (float32 on a CPU; bfloat16, or the checkpoint's float16,
    on a GPU), or a torch dtype's name. attention: the transformers attention implementation. Errors:
    ModelError when the family is unknown or the files are broken.
    """
    config = checkpoint.read_json("config.json")
    loader = _LOADERS.get(str(config.get("model_type")))
    if loader is None:
        raise ModelError(
            f"{checkpoint.name} is no LLaVA-OneVision checkpoint: its config.json says model_type "
            f"{describe(config)}, and the families known are {', '.join(_LOADERS)}."
        )
    place = _device(device)
    return loader(checkpoint, device=place, dtype=_dtype(dtype, place, config), attention=attention)


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device is 'auto' or a torch device such as 'cpu' or 'cuda:0', but got {name!r}."
        ) from error


def _dtype(name: str, device: torch.device, config: dict[str, object]) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name != "auto":
        if name not in known:
            raise ValueError(f"dtype is 'auto' or one of {', '.join(known)}, but got {name!r}.")
        return known[name]
    if device.type == "cpu":
        return torch.float32
    stored = config.get("dtype", config.get("torch_dtype"))
    return torch.float16 if stored == "float16" else torch.bfloat16
