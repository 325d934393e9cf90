"""Finding a checkpoint's files, by Hugging Face id or by path, and giving it an identity."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.hashes import file_hash
from pipeline.memory import Stored, refuse_too_large, stored_tensors

if TYPE_CHECKING:
    import torch

# Weights, configuration, tokenizer and chat templates: all that is read of a checkpoint. Not the copies in
# other formats that repositories also hold.
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "additional_chat_templates/*.jinja", "*.txt", "*.model")

# Weights as pickles, which may run code when they are read; wanted only where they are asked for.
PICKLES = ("*.bin",)

# Where a tokenizer keeps its words.
WORDS = "tokenizer.json, or vocab.json and merges.txt, or spiece.model,"

# What transformers raises when files are missing or wrong.
LOADING = (OSError, ValueError, RuntimeError, KeyError, ImportError)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder on this machine and what identifies its content."""

    name: str  # as the user gave it
    folder: Path
    # "sha256:<hash>" of its files, the same for an id and for a folder that holds the same; with the vision
    # tower's where the settings of that are read elsewhere.
    identity: str
    # As earlier versions identified it by its id: "<id>@<commit>". None for a folder, which they identified
    # as above.
    former_identity: str | None = None
    # Where its config.json leaves the sizes of its vision tower to another checkpoint: that one's settings.
    vision_tower: Checkpoint | None = None
    allow_pickle: bool = False  # whether weights stored as pickles may be read

    def is_identified_by(self, identity: str) -> bool:
        """Whether an identity recorded by this or an earlier version is this checkpoint's."""
        return identity in (self.identity, self.former_identity)

    def read_json(self, name: str) -> dict[str, Any]:
        """One of its JSON files; empty where there is none.

        Errors: ModelError when the file is no JSON object.
        """
        file = self.folder / name
        if not file.is_file():
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{file} is not valid JSON: {error}.") from error
        if not isinstance(content, dict):
            raise ModelError(f"{file} does not hold a JSON object.")
        return content


def find_checkpoint(name: str, revision: str | None = None, *, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint of a local folder or of a Hugging Face id (fetched if it is not there yet).

    allow_pickle: whether weights stored as pickles may be read where there are no others. Errors: ModelError
    when there is no such folder, its weights are pickles and not allowed, a file of it cannot be read, or the
    id cannot be fetched.
    """
    patterns = (*PATTERNS, *PICKLES) if allow_pickle else PATTERNS
    found = replace(_find(name, revision, patterns), allow_pickle=allow_pickle)
    pickles = sorted(file.name for pattern in PICKLES for file in found.folder.glob(pattern))
    if pickles and not allow_pickle and not any(found.folder.glob("*.safetensors")):
        raise ModelError(
            f"The weights of {name} are pickles ({pickles[0]}), which may run code when they are read. "
            f"{_WITHOUT_PICKLES}"
        )
    _refuse_files_elsewhere(found)
    if (found.folder / "adapter_config.json").is_file():
        # Read where another package is installed, passed over where it is not.
        raise ModelError(f"{name} holds an adapter (adapter_config.json): merge it into the weights first.")
    config = found.read_json("config.json")
    tower = config.get("mm_vision_tower")
    if not tower or "vision_config" in config:
        return found
    settings = _vision_tower(found, str(tower))
    former = found.former_identity
    return replace(
        found,
        identity=f"{found.identity}, vision tower {settings.identity}",
        former_identity=former and f"{former}, vision tower {settings.identity}",
        vision_tower=settings,
    )


_WITHOUT_PICKLES = (
    "Store them as safetensors (load the model with transformers and call its save_pretrained), or, where "
    "you trust their source, allow them: `allow_pickle: true` in study.yaml, `allow_pickle=True` from Python."
)


def _find(name: str, revision: str | None, patterns: Sequence[str]) -> Checkpoint:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"A revision belongs to a Hugging Face id, but {name} is a folder.")
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name} is no model folder: it holds no config.json.")
        return Checkpoint(name, folder, f"sha256:{_content_hash(folder, patterns)}")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"There is no folder {name}, and it is no Hugging Face id (owner/name) either.")
    from huggingface_hub import snapshot_download

    try:
        # A revision that cannot be resolved, no network, no access: the hub has an exception for each, and
        # each one's text says what to do.
        snapshot = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"{name} could not be fetched: {reason[0] if reason else type(error).__name__}"
        ) from error
    identity = f"sha256:{_content_hash(snapshot, patterns)}"
    return Checkpoint(name, snapshot, identity, f"{name}@{snapshot.name}")  # snapshots are named by commit


def _vision_tower(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The settings of the vision tower that a config.json names; of its other files none is wanted.

    A relative path is looked up from the model's folder, then the working directory. The identity is the
    same wherever the settings lie.
    """
    beside = checkpoint.folder / name
    settings = ("config.json",)
    try:
        tower = _find(str(beside) if beside.is_dir() else name, None, settings)
        return replace(tower, identity=f"sha256:{_content_hash(tower.folder, settings)}")
    except ModelError as error:
        raise ModelError(f"The vision tower that {checkpoint.name} names cannot be read: {error}") from error


def _refuse_files_elsewhere(checkpoint: Checkpoint) -> None:
    """Weights may be named by settings and indices: outside the folder they would be read, but not hashed."""
    named = {str(checkpoint.read_json("config.json").get("transformers_weights", ""))}
    for index in checkpoint.folder.glob("*.index.json"):
        weights = checkpoint.read_json(index.name).get("weight_map", {})
        named |= set(map(str, weights.values())) if isinstance(weights, Mapping) else set()
    elsewhere = sorted(name for name in named if Path(name).name != name)
    if elsewhere:
        raise ModelError(
            f"{checkpoint.name} names weights that do not lie in its own folder: {', '.join(elsewhere)}."
        )


def _content_hash(folder: Path, patterns: Sequence[str]) -> str:
    """Hash of names and bytes of all files that make the checkpoint, wherever the folder lies.

    Errors: ModelError when one of them cannot be read.
    """
    whole = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        name = file.relative_to(folder).as_posix()
        try:
            whole.update(f"{name}\0{file_hash(file)}\0".encode())
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror}.") from error
    return whole.hexdigest()


def load_pretrained(
    checkpoint: Checkpoint,
    model_class: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    config: Any = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Model and tokenizer of a checkpoint, as `load_weights` and `load_tokenizer` load them.

    config: the configuration, for a checkpoint whose config.json transformers cannot read. Errors: ModelError
    as those, or where a configuration made for the checkpoint leaves weights of it over.
    """
    model, left_over = load_weights(
        checkpoint, model_class, dtype=dtype, device=device, config=config, **options
    )
    # Which tokenizer a folder holds depends on its language model, where its files do not say it.
    tokenizer = load_tokenizer(checkpoint, None if config is None else config.get_text_config())
    if config is not None and left_over:
        # A configuration made here may have read the checkpoint wrongly; weights left over would show it.
        raise ModelError(
            f"{checkpoint.name} holds {len(left_over)} weights of another model, {left_over[0]} among them."
        )
    return model, tokenizer


def load_weights(
    checkpoint: Checkpoint,
    model_class: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    config: Any = None,
    unread: str | None = None,
    **options: Any,
) -> tuple[Any, list[str]]:
    """Model (on its device, in evaluation mode, without gradients), and the weights that it has no place for.

    config: instead of the checkpoint's own. unread: pattern of stored weights that are left in their file.
    options: of transformers' from_pretrained. Errors: ModelError when files are missing or damaged, weights
    do not fit the configuration, or the device has no room for them.
    """
    from safetensors import SafetensorError

    folder = checkpoint.folder
    if not checkpoint.allow_pickle and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{checkpoint.name} holds no weights as safetensors, and pickles are not read unasked. "
            f"{_WITHOUT_PICKLES}"
        )
    every = stored_tensors(folder)
    read = [tensor for name, tensor in every.items() if unread is None or not re.search(unread, name)]
    refuse_too_large(checkpoint.name, read, dtype, device)
    try:
        model, report = model_class.from_pretrained(
            folder,
            config=config,
            # As stored: such weights are the pages of their files until `_move` takes them one by one.
            dtype=_stored_dtype(read) or dtype,
            output_loading_info=True,
            # False in words: where nothing is said, transformers asks on the terminal.
            trust_remote_code=False,
            use_safetensors=None if checkpoint.allow_pickle else True,
            **options,
        )
        _move(model, dtype, device)
    except (*LOADING, SafetensorError) as error:
        damaged = _damaged_file(folder)
        what = f"{damaged} is damaged or incomplete: " if damaged else ""
        raise ModelError(f"{checkpoint.name} could not be loaded: {what}{_reason(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers fills missing weights with random numbers and only warns.
        raise ModelError(f"{checkpoint.name} lacks {len(missing)} weights, {missing[0]} among them.")
    return model.eval().requires_grad_(requires_grad=False), sorted(report["unexpected_keys"])


def load_tokenizer(checkpoint: Checkpoint, text_config: Any = None) -> Any:
    """The tokenizer of a checkpoint.

    text_config: the language model's configuration where config.json does not tell which tokenizer belongs to
    it. Errors: ModelError when its files are missing, need code of their own, or are no part of the identity.
    """
    from transformers import AutoTokenizer

    folder = checkpoint.folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=text_config, trust_remote_code=False)
    except LOADING as error:
        if "auto_map" in checkpoint.read_json("tokenizer_config.json"):
            raise ModelError(
                f"The tokenizer of {checkpoint.name} needs code of its own (auto_map in "
                "tokenizer_config.json). Code that comes with a checkpoint is never run."
            ) from error
        raise ModelError(
            f"The tokenizer of {checkpoint.name} could not be loaded (is a file missing?): {_reason(error)}"
        ) from error
    known = {file for pattern in PATTERNS for file in folder.glob(pattern)}
    unknown = [name for name in tokenizer.vocab_files_names.values() if folder / name not in known]
    unhashed = [name for name in unknown if (folder / name).exists()]
    if unhashed:
        raise ModelError(
            f"The tokenizer of {checkpoint.name} reads {unhashed[0]}, a kind of file that is no part of a "
            "checkpoint's identity."
        )
    if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):
        # Without the files of its words a tokenizer loads all the same, and turns every text into nothing.
        raise ModelError(f"The tokenizer of {checkpoint.name} knows no words: {WORDS} are missing.")
    return tokenizer


def _stored_dtype(tensors: Iterable[Stored]) -> torch.dtype | None:
    """The number format of all floating-point weights; None where there are several, or one unknown here."""
    import torch

    names = {tensor.dtype for tensor in tensors if tensor.floating}
    known = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return known.get(names.pop()) if len(names) == 1 else None


def _move(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """To the device and its number format, one weight after another: the host never holds all of them.

    Where neither changes, weights go on being the pages of their files. Buffers keep their number format.
    """
    import torch

    moved: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # tied weights stay one
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight not in moved:
                there = weight.data.to(device, dtype if weight.is_floating_point() else None)
                moved[weight] = torch.nn.Parameter(there, requires_grad=False)
            setattr(module, name, moved[weight])
        if getattr(getattr(module, "config", None), "dtype", None) is not None:
            module.config.dtype = dtype
    model.to(device)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _damaged_file(folder: Path) -> str | None:
    """A file of weights that cannot be opened: what safetensors says of it does not name it."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError):
            return file.name
    return None


def describe(config: Mapping[str, Any]) -> str:
    """What a config.json says it is, for error messages."""
    return repr(config.get("model_type", "nothing"))
