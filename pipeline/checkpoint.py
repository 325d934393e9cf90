"""Finding a checkpoint's files, by Hugging Face id or by path, and giving it an identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError

# Weights, configuration, tokenizer and chat template; not the copies in other formats that repositories also
# hold.
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")

# Where a tokenizer keeps its words.
WORDS = "tokenizer.json, or vocab.json and merges.txt, or spiece.model,"

# What transformers raises when files are missing or wrong.
LOADING = (OSError, ValueError, RuntimeError, KeyError, ImportError)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder on this machine and what identifies its content."""

    name: str  # as the user gave it
    folder: Path
    identity: str  # "<id>@<commit>", or "sha256:<hash>" of the files of a local folder

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


def find_checkpoint(
    name: str, revision: str | None = None, *, patterns: Sequence[str] = PATTERNS
) -> Checkpoint:
    """The checkpoint of a local folder or of a Hugging Face id (fetched if it is not there yet).

    patterns: the files that count, for a checkpoint of which not all is wanted. Errors: ModelError when there
    is no such folder, or the id cannot be fetched.
    """
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


def _content_hash(folder: Path, patterns: Sequence[str]) -> str:
    """Hash of names and bytes of all files that make the checkpoint, wherever the folder lies."""
    whole = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        with file.open("rb") as stream:
            whole.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
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

    try:
        model, report = model_class.from_pretrained(
            checkpoint.folder, config=config, output_loading_info=True, **options
        )
    except (*LOADING, SafetensorError) as error:
        damaged = _damaged_file(checkpoint.folder)
        what = f"{damaged} is damaged or incomplete: " if damaged else ""
        raise ModelError(f"{checkpoint.name} could not be loaded: {what}{_reason(error)}") from error
    try:
        # Which tokenizer a folder holds depends on its language model, where its files do not say it.
        text_config = None if config is None else config.get_text_config()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, config=text_config)
    except LOADING as error:
        raise ModelError(
            f"The tokenizer of {checkpoint.name} could not be loaded (is a file missing?): {_reason(error)}"
        ) from error
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
