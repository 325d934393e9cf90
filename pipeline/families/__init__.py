"""Model families: each one adapter file. A new one is its file, its line here and its row in the tests."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.checkpoint import Checkpoint, describe
from pipeline.errors import ModelError

if TYPE_CHECKING:
    import torch

    from pipeline.families.base import Family

# model_type in config.json -> the family's name, and its module here with a function `load`. Modules are
# imported when a model is loaded: reading a study asks for the names alone, and torch takes seconds.
FAMILIES = {
    "llava_onevision": ("LLaVA-OneVision", "llava_onevision"),
    "llava": ("LLaVA-Video", "llava_video"),
    "llava_qwen": ("LLaVA-Video", "llava_video"),
}
NAMES = " or ".join(dict.fromkeys(name for name, _ in FAMILIES.values()))

# The families whose frames can be pooled in several ways, by the names of their model_type, and the ways.
POOLED = tuple(model_type for model_type, (name, _) in FAMILIES.items() if name == "LLaVA-Video")
POOLINGS = ("average", "bilinear", "max")


def load_family(
    checkpoint: Checkpoint, *, device: str, dtype: str, attention: str, pooling: str | None = None
) -> Family:
    """The model of a checkpoint, by the family its config.json names.

    device: "auto", or a torch device. dtype: "auto" (float32 on a CPU, bfloat16 on a GPU, float16 on one
    without bfloat16), or a torch dtype's name. attention: the transformers attention implementation. pooling:
    one of POOLINGS instead of the checkpoint's own, for a family of POOLED. Errors: ModelError when the
    family is unknown, pools in one way only, the files are broken, the attention implementation cannot be
    used, or the device has no room for the weights.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, but got {pooling!r}.")
    config = checkpoint.read_json("config.json")
    known = FAMILIES.get(str(config.get("model_type")))
    if known is None:
        raise ModelError(
            f"{checkpoint.name} is no {NAMES} checkpoint: its config.json says model_type "
            f"{describe(config)}, and those known are {', '.join(FAMILIES)}."
        )
    options = {}
    if pooling is not None:
        if config["model_type"] not in POOLED:
            raise ModelError(
                f"pooling is {pooling}, but {checkpoint.name} is a {known[0]} checkpoint, which pools in one "
                "way only: leave pooling out."
            )
        options = {"pooling": pooling}
    place = _device(device)
    number_format = _dtype(dtype, place)
    if attention.startswith("flash_attention") and number_format.itemsize > 2:
        raise ModelError(
            f"{attention} computes in bfloat16 or float16, but dtype is "
            f"{str(number_format).removeprefix('torch.')}: name one of the two, or another attention backend."
        )
    module = import_module(f"pipeline.families.{known[1]}")
    family: Family = module.load(
        checkpoint, device=place, dtype=number_format, attention=attention, **options
    )
    return family


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


def _dtype(name: str, device: torch.device) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in ("auto", *known):
        raise ValueError(f"dtype is 'auto' or one of {', '.join(known)}, but got {name!r}.")
    if name == "auto" and device.type == "cpu":
        return torch.float32
    # Also where the checkpoint is stored in float16: what the model computes may leave its range.
    dtype = known.get(name, torch.bfloat16)
    if (
        name == "auto"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        dtype = torch.float16
    if dtype == torch.float16:
        why = "it was asked for" if name != "auto" else "this GPU has no bfloat16"
        logging.getLogger("pipeline").warning(
            "The model runs in float16, because %s. Its range ends at 65,504, which the attention of Qwen2 "
            "models is known to leave: such questions end with an error. float32 is safe.",
            why,
        )
    return dtype
