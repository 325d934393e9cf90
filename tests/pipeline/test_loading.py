"""Weights go from their files to the device, each once, and only those that are needed."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlavaOnevisionForConditionalGeneration, SiglipModel, modeling_utils

from pipeline import checkpoint as loading
from pipeline import memory
from pipeline.checkpoint import find_checkpoint, load_pretrained
from pipeline.encoders import load_encoder
from pipeline.errors import ModelError
from pipeline.families import load_family
from tests.checkpoints import Size, scenes, write_checkpoints, write_llava_video

CPU = torch.device("cpu")
VISION_LAYERS = 4  # of the whole SigLIP: the tower has three


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    size = Size(layers=2, vision_layers=VISION_LAYERS)
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"), size=size)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Stored in float16, as llava-hf publishes its checkpoints."""
    paths = write_checkpoints(tmp_path_factory.mktemp("half"), layers=2)
    file = paths.model / "model.safetensors"
    save_file({name: item.half() for name, item in load_file(file).items()}, file, metadata={"format": "pt"})
    return paths


@pytest.fixture
def read(monkeypatch):
    """Names of the weights that transformers takes out of safetensors files."""
    names = []

    class Slice:
        def __init__(self, name, inner):
            self.name, self.inner = name, inner

        def __getitem__(self, key):
            names.append(self.name)
            return self.inner[key]

        def __getattr__(self, name):
            return getattr(self.inner, name)

    class File:
        def __init__(self, *args, **kwargs):
            self.inner = open_file(*args, **kwargs)

        def get_slice(self, name):
            return Slice(name, self.inner.get_slice(name))

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __enter__(self):
            self.inner.__enter__()
            return self

        def __exit__(self, *args):
            return self.inner.__exit__(*args)

    open_file = modeling_utils.safe_open
    monkeypatch.setattr(modeling_utils, "safe_open", File)
    return names


def load(paths, **options):
    options = {"dtype": torch.float32, "device": CPU} | options
    return load_pretrained(
        find_checkpoint(str(paths.model)), LlavaOnevisionForConditionalGeneration, **options
    )[0]


def mapped(tensor):
    """Whether a tensor is pages of a safetensors file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            begin, end = (int(item, 16) for item in line.split()[0].split("-"))
            if begin <= tensor.data_ptr() < end:
                return True
    return False


# -- the model ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the process's mappings")
def test_weights_stored_as_they_are_computed_with_are_the_pages_of_their_file(paths):
    """Workers of one machine share them: no copy of a model in float32 on a CPU."""
    model = load(paths)
    assert all(mapped(parameter) for parameter in model.parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the process's mappings")
def test_on_the_way_to_a_device_the_host_copies_no_weight(half, monkeypatch):
    """At ae20304: the whole model converted in the host's memory first, 15 GB a worker at 7B."""
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                made.append(result)
            return result

    move = loading._move

    def watched(model, dtype, device):
        assert all(mapped(parameter) for parameter in model.parameters())
        with Watch():
            move(model, dtype, device)

    monkeypatch.setattr(loading, "_move", watched)
    model = load(half, dtype=torch.bfloat16, device=torch.device("meta"))
    assert {(parameter.device.type, parameter.dtype) for parameter in model.parameters()} == {
        ("meta", torch.bfloat16)
    }
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    weights = [tensor for tensor in made if tensor.dtype == torch.bfloat16]
    assert len(weights) >= len(list(model.parameters()))
    assert {weight.device.type for weight in weights} == {"meta"}


def test_another_number_format_than_the_stored_one_is_that_of_all_weights_and_no_buffer(half):
    model, stored = load(half, dtype=torch.bfloat16), load_file(half.model / "model.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} == {model.dtype}
    assert {module.config.dtype for module in model.modules() if hasattr(module, "config")} == {
        torch.bfloat16
    }
    (name,) = (name for name in stored if name.endswith("layers.1.mlp.up_proj.weight"))
    assert model.model.language_model.layers[1].mlp.up_proj.weight.equal(stored[name].bfloat16())
    # Rotary frequencies in half precision would place tokens elsewhere.
    assert model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.bfloat16), (torch.float32, torch.float16)])
def test_weights_in_several_number_formats_are_rounded_once(paths, tmp_path, dtypes):
    """Through a common format some would be rounded twice."""
    stored = load_file(paths.model / "model.safetensors")
    mixed = {name: answer.to(dtypes[i % 2]) for i, (name, answer) in enumerate(sorted(stored.items()))}
    for file in paths.model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(mixed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load(SimpleNamespace(model=tmp_path), dtype=torch.bfloat16)
    found = model.model.language_model.layers[1].state_dict()
    assert len(found) > 10
    for name, answer in found.items():
        (wanted,) = (mixed[key] for key in mixed if "language" in key and key.endswith(f"layers.1.{name}"))
        assert answer.equal(wanted.bfloat16())


def test_tied_weights_stay_one(tmp_path):
    model = load(write_checkpoints(tmp_path, size=Size(layers=2, tied=True)), dtype=torch.bfloat16)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.lm_head.weight.dtype == torch.bfloat16


# -- the aligned encoder ------------------------------------------------------------------------------------


def test_of_siglip_only_what_the_tower_lacks_is_read(paths, read):
    """At ae20304: the whole SigLIP, 3.5 GB in float32."""
    family = load_family(find_checkpoint(str(paths.model)), device="cpu", dtype="auto", attention="sdpa")
    assert {name for name in read if "vision_tower.encoder.layers.0." in name}  # the spy sees what is read
    read.clear()
    encoder = load_encoder(find_checkpoint(str(paths.siglip)), family)
    needed = re.compile(
        rf"text_model\.|logit_|vision_model\.(post_layernorm|head|encoder\.layers\.{VISION_LAYERS - 1})\."
    )
    stored = load_file(paths.siglip / "model.safetensors")
    assert set(read) == {name for name in stored if needed.match(name)}
    assert len(read) == len(set(read))
    whole = SiglipModel.from_pretrained(paths.siglip).eval()
    features = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last = whole.vision_model.encoder.layers[-1](features, attention_mask=None)
        expected = whole.vision_model.head(whole.vision_model.post_layernorm(last))
    torch.testing.assert_close(encoder.embed_frames(scenes(1), features), expected, rtol=0, atol=0)


def test_an_encoder_that_lacks_a_weight_is_refused_by_its_name(paths, tmp_path):
    family = load_family(find_checkpoint(str(paths.model)), device="cpu", dtype="auto", attention="sdpa")
    for file in paths.siglip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stored = load_file(paths.siglip / "model.safetensors")
    lacking = f"vision_model.encoder.layers.{VISION_LAYERS - 1}.mlp.fc1.weight"
    del stored[lacking]
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks 1 weights, {lacking} among them"):
        load_encoder(find_checkpoint(str(tmp_path)), family)


# -- what does not fit --------------------------------------------------------------------------------------


def test_a_model_that_does_not_fit_is_refused_before_a_weight_is_read(paths, read, monkeypatch):
    numbers = sum(tensor.numel() for tensor in load_file(paths.model / "model.safetensors").values())
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * numbers - 1)
    with pytest.raises(ModelError) as caught:
        load(paths, dtype=torch.bfloat16)
    assert f"its {numbers:,} weights take 0.0 GiB as bfloat16 (2 bytes each)" in str(caught.value)
    assert "never spread over several" in str(caught.value)
    assert not read
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * numbers)
    assert load(paths, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_encoder_counts_with_what_is_read_of_it(paths, monkeypatch):
    family = load_family(find_checkpoint(str(paths.model)), device="cpu", dtype="auto", attention="sdpa")
    stored = load_file(paths.siglip / "model.safetensors")
    unread = re.compile(r"vision_model\.(embeddings|encoder\.layers\.[012])\.")
    needed = sum(tensor.nbytes for name, tensor in stored.items() if not unread.match(name))
    assert needed < sum(tensor.nbytes for tensor in stored.values())
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    with pytest.raises(ModelError, match="does not fit on cpu"):
        load_encoder(find_checkpoint(str(paths.siglip)), family)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    load_encoder(find_checkpoint(str(paths.siglip)), family)


def test_weights_in_several_files_are_counted_by_their_index(tmp_path):
    paths = write_llava_video(tmp_path, size=Size(layers=2, image=56))
    stored = memory.stored_tensors(paths.model)
    files = [load_file(file) for file in paths.model.glob("*.safetensors")]
    assert len(files) == 2
    assert sum(tensor.bytes_in(4) for tensor in stored.values()) == sum(
        tensor.nbytes for file in files for tensor in file.values()
    )
