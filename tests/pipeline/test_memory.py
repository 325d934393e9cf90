"""Memory by plan, from shapes and headers alone, beside what is counted."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, Qwen2Config, Qwen2Model, SiglipVisionConfig, SiglipVisionModel
from transformers.generation.utils import ALL_CACHE_NAMES

from pipeline import memory
from pipeline.errors import ModelError
from pipeline.flops import LLAVA_ONEVISION_7B
from pipeline.memory import Stored, WorkerMemory, host_bytes, refuse_too_large, stored_tensors, working_bytes

GIB = 2**30
FRAMES, TOKENS = 32, 32 * 196 + 1 + 100


class LiveBytes(TorchDispatchMode):
    """Counts the memory of all tensors made inside the block, freed ones taken off; no device needed."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage):
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage._cdata, size)

    def _remove(self, key, size):
        self._known.discard(key)
        self.now -= size


@pytest.fixture(scope="module")
def decoder():
    shape = LLAVA_ONEVISION_7B
    config = Qwen2Config(
        vocab_size=100,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_width // (shape.hidden // shape.heads),
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        return Qwen2Model(config).bfloat16().eval()


def counted(call):
    with torch.inference_mode(), LiveBytes() as live:
        call()
    return live.peak


def test_the_plan_of_an_answer_holds_for_the_7b_shape_and_is_not_wasteful(decoder):
    """The unpruned prompt of a video of 32 frames, on torch's meta device."""
    embeddings = torch.empty(1, TOKENS, LLAVA_ONEVISION_7B.hidden, dtype=torch.bfloat16, device="meta")
    peak = counted(
        lambda: decoder(inputs_embeds=embeddings, **{ALL_CACHE_NAMES[0]: DynamicCache(config=decoder.config)})
    )
    text_only = LLAVA_ONEVISION_7B.__class__(**{**vars(LLAVA_ONEVISION_7B), "vision": None})
    planned = working_bytes(text_only, frames=FRAMES, tokens=TOKENS, itemsize=2)
    assert peak > 300 * 2**20  # keys and values alone
    assert peak <= planned <= 1.5 * peak, (peak, planned)


def test_the_plan_of_encoding_holds_for_the_published_tower():
    vision = LLAVA_ONEVISION_7B.vision
    config = SiglipVisionConfig(
        hidden_size=vision.width,
        intermediate_size=vision.mlp_width,
        num_hidden_layers=2,  # peaks are a layer's
        num_attention_heads=16,
        image_size=378,
        patch_size=14,
        vision_use_head=False,
    )
    with torch.device("meta"):
        tower = SiglipVisionModel(config).bfloat16().eval()
        whole = SiglipVisionModel(config).eval()
        pixels = torch.empty(8, 3, 378, 378, dtype=torch.bfloat16)
        features = torch.empty(FRAMES, 729, vision.width, dtype=torch.bfloat16)
    run = counted(lambda: tower(pixels))
    embedding = counted(lambda: whole.encoder.layers[0](features.float(), attention_mask=None))
    none = working_bytes(LLAVA_ONEVISION_7B, frames=0, tokens=1, itemsize=2)
    planned = working_bytes(LLAVA_ONEVISION_7B, frames=FRAMES, tokens=1, itemsize=2)
    assert run <= none <= 2 * run, (run, none)
    assert embedding + features.nbytes <= planned <= 2 * embedding, (embedding, planned)


@pytest.mark.quick
def test_workers_fit_as_often_as_their_sum_does():
    each = WorkerMemory(weights=16 * GIB, kept=GIB, working=5 * GIB, reserved=2 * GIB)
    assert each.total == 24 * GIB
    assert [each.fitting(size * GIB) for size in (23, 24, 79, 96)] == [0, 1, 3, 4]


@pytest.mark.quick
def test_more_workers_than_fit_a_gpu_are_refused_with_the_arithmetic():
    each = WorkerMemory(weights=16 * GIB, kept=GIB, working=5 * GIB, reserved=2 * GIB)
    memory.refuse_crowded(each, 3, 80 * GIB)
    with pytest.raises(ModelError) as caught:
        memory.refuse_crowded(each, 4, 80 * GIB)
    assert str(caught.value) == (
        "4 workers share a GPU of 80.0 GiB, but each takes up to 24.0 GiB (weights 16.0 GiB, kept prefixes "
        "and features 1.0 GiB, encoding and answering 5.0 GiB, reserve 2.0 GiB): 3 fit. Run fewer workers on "
        "it, or smaller packs of questions."
    )
    with pytest.raises(ModelError, match=r"not even 1 fits\."):
        memory.refuse_crowded(each, 2, 20 * GIB)


@pytest.mark.quick
def test_larger_packs_longer_prompts_and_wider_numbers_take_more():
    def plan(**change):
        return working_bytes(LLAVA_ONEVISION_7B, **({"frames": 8, "tokens": TOKENS, "itemsize": 2} | change))

    assert plan(batch=2) == 2 * plan()
    assert plan() < plan(tokens=2 * TOKENS)
    assert plan() < plan(itemsize=4)


# -- headers ------------------------------------------------------------------------------------------------


def write_header(folder, tensors, name="model.safetensors"):
    """A safetensors file that ends with its header: whoever reads weights fails."""
    header = {"__metadata__": {"format": "pt"}} | {
        key: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
        for key, (dtype, shape) in tensors.items()
    }
    text = json.dumps(header).encode()
    (folder / name).write_bytes(len(text).to_bytes(8, "little") + text)


@pytest.mark.quick
def test_a_checkpoints_bytes_are_planned_from_its_headers_alone(tmp_path):
    """72 billion numbers in half a kilobyte."""
    write_header(tmp_path, {"a": ("F16", [9_000_000, 8_000]), "ids": ("I64", [10]), "small": ("F32", [])})
    stored = stored_tensors(tmp_path)
    assert stored == {"a": Stored("F16", 72 * 10**9), "ids": Stored("I64", 10), "small": Stored("F32", 1)}
    assert sum(tensor.bytes_in(2) for tensor in stored.values()) == 144 * 10**9 + 80 + 2
    assert sum(tensor.bytes_in(4) for tensor in stored.values()) == 288 * 10**9 + 80 + 4


@pytest.mark.quick
def test_a_72b_model_is_refused_by_name_and_arithmetic(tmp_path, monkeypatch):
    write_header(tmp_path, {"a": ("F16", [9_000_000, 8_000])})
    monkeypatch.setattr(memory, "free_bytes", lambda device: 79 * GIB)
    with pytest.raises(ModelError) as caught:
        refuse_too_large("owner/72b", stored_tensors(tmp_path).values(), torch.bfloat16, torch.device("cpu"))
    assert str(caught.value).startswith(
        "owner/72b does not fit on cpu: its 72,000,000,000 weights take 134.1 GiB as bfloat16 (2 bytes "
        "each), and 79.0 GiB are free. A model is loaded whole on one device, never spread over several:"
    )


@pytest.mark.quick
@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, (10**9).to_bytes(8, "little"), b"\x02" + b"\0" * 7 + b"{]"]
)
def test_a_damaged_header_is_left_to_the_loader(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert stored_tensors(tmp_path) == {}
    assert stored_tensors(tmp_path / "nowhere") == {}


@pytest.mark.quick
def test_a_containers_limit_counts(tmp_path, monkeypatch):
    files = Path(tmp_path / "max"), Path(tmp_path / "current")
    monkeypatch.setattr(memory, "_CONTAINER", (files,))
    machine = host_bytes()
    files[1].write_text("300\n")
    files[0].write_text("max\n")
    assert host_bytes() > 1000 < machine
    files[0].write_text("1000\n")
    assert host_bytes() == 700
    files[0].write_text("100\n")
    assert host_bytes() == 0
