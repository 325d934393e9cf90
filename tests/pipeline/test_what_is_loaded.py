"""Whatever a checkpoint's loading opens is part of the checkpoint's identity."""

import contextlib
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoint import find_checkpoint
from pipeline.errors import ModelError
from pipeline.runtime import Runtime
from tests.checkpoints import Checkpoints, Size, write_checkpoints, write_llava_video
from tests.published import HALF, write_published

_watched: list[set[Path]] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | bytes):
        _watched[-1].add(Path(os.fsdecode(arguments[0])))


sys.addaudithook(_note)  # stays for the process; notes nothing outside of `opened`


@contextlib.contextmanager
def opened():
    """The files that Python code opens inside the block."""
    _watched.append(set())
    try:
        yield _watched[-1]
    finally:
        _watched.pop()


def write_pickled(folder: Path) -> Checkpoints:
    """Weights, and nothing else, in the old format."""
    paths = write_checkpoints(folder, layers=2)
    for part in (paths.model, paths.siglip):
        torch.save(load_file(part / "model.safetensors"), part / "pytorch_model.bin")
        (part / "model.safetensors").unlink()
    return paths


def write_with_templates(folder: Path) -> Checkpoints:
    paths = write_checkpoints(folder, layers=2)
    (paths.model / "additional_chat_templates").mkdir()
    (paths.model / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    (paths.model / "README.md").write_text("Not read.")
    return paths


WRITERS = {
    "LLaVA-OneVision": lambda folder: write_checkpoints(folder, layers=2),
    "with more templates": write_with_templates,
    "published": lambda folder: write_published(folder, HALF),
    "LLaVA-Video": lambda folder: write_llava_video(folder, size=Size(layers=2, image=56)),
    "pickled": write_pickled,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_file_opened_is_part_of_the_identity(tmp_path, writer):
    """At ae20304 pickled weights could be replaced, and the answers of the former ones were given, exit 0."""
    paths = WRITERS[writer](tmp_path)
    allowed = writer == "pickled"

    def identities():
        return [
            find_checkpoint(str(item), allow_pickle=allowed).identity for item in (paths.model, paths.siglip)
        ]

    before = identities()
    with opened() as files:
        loaded = Runtime.load(
            str(paths.model), text_encoder=str(paths.siglip), frames=2, allow_pickle=allowed
        )
    assert [loaded.identity, loaded.encoder_identity] == before
    read = {file.resolve() for file in files if file.resolve().is_relative_to(tmp_path.resolve())}
    names = {file.name for file in read}
    assert {"config.json", "tokenizer_config.json"} <= names
    assert "README.md" not in names
    for file in read:
        content = file.read_bytes()
        file.write_bytes(content + b" ")  # JSON stays JSON
        assert identities() != before, f"{file.name} was loaded, but is not part of the identity"
        file.write_bytes(content)
    assert identities() == before


def test_pickled_weights_are_loaded_only_where_they_are_allowed(tmp_path):
    paths = write_pickled(tmp_path)
    with pytest.raises(ModelError, match=r"are pickles \(pytorch_model\.bin\)"):
        Runtime.load(str(paths.model), text_encoder=str(paths.siglip), frames=2)
    loaded = Runtime.load(str(paths.model), text_encoder=str(paths.siglip), frames=2, allow_pickle=True)
    stored = torch.load(paths.model / "pytorch_model.bin", weights_only=True)
    (name,) = (name for name in stored if name.endswith("embed_tokens.weight"))
    assert loaded.model.get_input_embeddings().weight.equal(stored[name])
