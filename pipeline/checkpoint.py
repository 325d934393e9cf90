"""Finding a checkpoint's files, by Hugging Face id or by path, and giving it an identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError

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
    # "<id>@<commit>", or "sha256:<hash>" of the files of a local folder; with the vision tower's where the
    # settings of that are read elsewhere.
    identity: str
    # Where its config.json leaves the sizes of its vision tower to another checkpoint: that one's settings.
    vision_tower: Checkpoint | None = None
    allow_pickle: bool = False  # whether weights stored as pickles may be read

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
    return replace(
        found, identity=f"{found.identity}, vision tower {settings.identity}", vision_tower=settings
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
    return Checkpoint(name, snapshot, f"{name}@{snapshot.name}")  # snapshots are named by their commit


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
            with file.open("rb") as stream:
                whole.update(f"{name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror}.") from error
    return whole.hexdigest()


def load_pretrained(
    checkpoint: Checkpoint, model_class: Any, *, config: Any = None, **options: Any
) -> tuple[Any, Any]:
    """Model (in evaluation mode, without gradients) and tokenizer of a checkpoint.

    config: the configuration, for a checkpoint whose config.json transformers cannot read. options: of
    transformers' from_pretrained. Errors: ModelError when files are missing or damaged, or weights do not fit
    the configuration.
    """
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    folder = checkpoint.folder
    if not checkpoint.allow_pickle and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{checkpoint.name} holds no weights as safetensors, and pickles are not read unasked. "
            f"{_WITHOUT_PICKLES}"
        )
    try:
        model, report = model_class.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            # False in words: where nothing is said, transformers asks on the terminal.
            trust_remote_code=False,
            use_safetensors=None if checkpoint.allow_pickle else True,
            **options,
        )
    except (*LOADING, SafetensorError) as error:
        damaged = _damaged_file(folder)
        what = f"{damaged} is damaged or incomplete: " if damaged else ""
        raise ModelError(f"{checkpoint.name} could not be loaded: {what}{_reason(error)}") from error
    try:
        # Which tokenizer a folder holds depends on its language model, where its files do not say it.
        text_config = None if config is None else config.get_text_config()
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
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers fills missing weights with random numbers and only warns.
        raise ModelError(f"{checkpoint.name} lacks {len(missing)} weights, {missing[0]} among them.")
    unknown = sorted(report["unexpected_keys"])
    if config is not None and unknown:
        # A configuration made here may have read the checkpoint wrongly; weights left over would show it.
        raise ModelError(
            f"{checkpoint.name} holds {len(unknown)} weights of another model, {unknown[0]} among them."
        )
    return model.eval().requires_grad_(requires_grad=False), tokenizer


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
