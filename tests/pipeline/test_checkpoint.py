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


def test_an_id_is_its_commit(monkeypatch, tmp_path):
    import huggingface_hub

    snapshot = tmp_path / "0123abc"
    snapshot.mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    assert find_checkpoint("owner/model", "main").identity == "owner/model@0123abc"


def test_an_id_that_cannot_be_fetched_is_refused(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"owner/model could not be fetched: no network$"):
        find_checkpoint("owner/model")


def test_of_an_id_whose_settings_are_wanted_nothing_else_is_fetched(monkeypatch, tmp_path):
    import huggingface_hub

    wanted = []

    def fetch(name, *, revision, allow_patterns):
        wanted.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    find_checkpoint("owner/tower", patterns=("config.json",))
    assert wanted == [("owner/tower", None, ["config.json"])]
