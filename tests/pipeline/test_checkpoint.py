import hashlib
import json
from pathlib import Path

import pytest

from pipeline.checkpoint import find_checkpoint
from pipeline.errors import ModelError

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_neither_a_folder_nor_an_id_is_refused(name):
    with pytest.raises(ModelError, match=f"There is no folder {name}, and it is no Hugging Face id"):
        find_checkpoint(name)


def test_a_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"is no model folder: it holds no config\.json"):
        find_checkpoint(str(tmp_path))


def test_broken_configuration_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not valid JSON"):
        find_checkpoint(str(tmp_path)).read_json("config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="does not hold a JSON object"):
        find_checkpoint(str(tmp_path)).read_json("config.json")


def test_a_revision_of_a_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match="A revision belongs to a Hugging Face id"):
        find_checkpoint(str(tmp_path), "main")


def hub_cache(folder, monkeypatch, files, large=()):
    """`files` by name, downloaded as owner/model at a commit: links to blobs, those of large files named by
    their SHA-256. No network.
    """
    from huggingface_hub import constants

    repository, commit = folder / "models--owner--model", "0123456789" * 4
    snapshot = repository / "snapshots" / commit
    for parent in (repository / "refs", repository / "blobs", snapshot):
        parent.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for name, text in files.items():
        digest = hashlib.sha256(text.encode()).hexdigest()
        blob = repository / "blobs" / (digest if name in large else digest[:40])
        blob.write_text(text)
        (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return f"owner/model@{commit}"


FILES = {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "{}"}


def test_an_id_and_a_folder_with_the_same_files_have_one_identity(tmp_path, monkeypatch):
    """At ae20304: "owner/model@<commit>" by id, so a best.json tuned by id refused a local mirror."""
    former = hub_cache(tmp_path / "hub", monkeypatch, FILES, large=["model.safetensors"])
    by_id = find_checkpoint("owner/model", "main")
    mirror = find_checkpoint(write(tmp_path / "mirror", **FILES, **{"README.md": "not read"}))
    assert by_id.identity == mirror.identity == find_checkpoint(str(by_id.folder)).identity
    # What earlier versions recorded goes on to be known where it can be compared.
    assert by_id.is_identified_by(former)
    assert by_id.is_identified_by(mirror.identity)
    assert not mirror.is_identified_by(former)
    assert not by_id.is_identified_by("owner/model@another")


def test_weights_that_the_hub_names_by_their_hash_are_not_read(tmp_path, monkeypatch):
    hub_cache(tmp_path / "hub", monkeypatch, FILES, large=["model.safetensors"])
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, how: (read.append(file.name), digest(file, how))[1]
    )
    find_checkpoint("owner/model")
    assert len(read) == 2
    assert not any(len(Path(name).name) == 64 for name in read)


def test_an_id_that_cannot_be_fetched_is_refused(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"owner/model could not be fetched: no network$"):
        find_checkpoint("owner/model")


def test_of_the_vision_tower_that_a_model_names_nothing_but_its_settings_is_fetched(monkeypatch, tmp_path):
    import huggingface_hub

    wanted = []

    def fetch(name, *, revision, allow_patterns):
        wanted.append((name, revision, allow_patterns))
        return str(tmp_path / name)

    for name, config in (("owner/model", {"mm_vision_tower": "owner/tower"}), ("owner/tower", {})):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert find_checkpoint("owner/model").vision_tower.name == "owner/tower"
    assert [item[0] for item in wanted] == ["owner/model", "owner/tower"]
    assert wanted[1][2] == ["config.json"]


# -- the identity covers what is loaded ---------------------------------------------------------------------


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in {"config.json": "{}", **files}.items():
        (folder / name).write_text(text)
    return str(folder)


def test_the_identity_of_a_folder_is_that_of_its_files_wherever_it_lies(tmp_path):
    """Written out: records and best.json hold it, so it must not change for the same files."""
    files = {"config.json": "{}", "model.safetensors": "weights", "vocab.txt": "words"}
    parts = [f"{name}\0{hashlib.sha256(text.encode()).hexdigest()}\0" for name, text in files.items()]
    expected = hashlib.sha256("".join(parts).encode()).hexdigest()
    for folder in (tmp_path / "one", tmp_path / "two"):
        name = write(folder, **files, **{"README.md": str(folder), "pytorch_model.bin": str(folder)})
        assert find_checkpoint(name).identity == f"sha256:{expected}"


def test_weights_that_are_pickles_are_refused_and_where_allowed_hashed(tmp_path):
    name = write(tmp_path, **{"pytorch_model.bin": "weights"})
    with pytest.raises(ModelError) as caught:
        find_checkpoint(name)
    assert "pickles (pytorch_model.bin), which may run code" in str(caught.value)
    assert "save_pretrained" in str(caught.value)
    assert "allow_pickle: true" in str(caught.value)
    before = find_checkpoint(name, allow_pickle=True).identity
    write(tmp_path, **{"pytorch_model.bin": "others"})
    assert find_checkpoint(name, allow_pickle=True).identity != before


def test_further_chat_templates_are_part_of_the_identity(tmp_path):
    name = write(tmp_path)
    before = find_checkpoint(name).identity
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "default.jinja").write_text("{{ messages }}")
    assert find_checkpoint(name).identity != before


@pytest.mark.parametrize(
    ("files", "elsewhere"),
    [
        ({"config.json": '{"transformers_weights": "deep/model.safetensors"}'}, "deep/model.safetensors"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "../x.safetensors"}}'}, "../x.safetensors"),
    ],
)
def test_weights_outside_the_folder_are_refused(tmp_path, files, elsewhere):
    with pytest.raises(ModelError, match=f"names weights that do not lie in its own folder: {elsewhere}"):
        find_checkpoint(write(tmp_path, **files))


def test_an_adapter_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds an adapter \(adapter_config\.json\): merge it"):
        find_checkpoint(write(tmp_path, **{"adapter_config.json": "{}"}))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    name = write(tmp_path)
    (tmp_path / "model.safetensors").symlink_to("gone")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read: No such file"):
        find_checkpoint(name)
