"""What the vision side says of each token: as SigLIP computes it, pooled, and stored with the clip."""

import hashlib

import numpy as np
import pytest
import torch
from transformers import SiglipModel

from pipeline import video
from pipeline.cache import FeatureCache
from pipeline.methods import AdaTP, FastV, VisionZip
from pipeline.question import Question
from pipeline.runtime import Runtime
from tests.checkpoints import Size, scenes, write_llava_video
from tests.pipeline.conftest import FRAMES

PARTS = ("pooling", "received", "keys")


@pytest.fixture(scope="module")
def siglip(checkpoints):
    return SiglipModel.from_pretrained(checkpoints.siglip, attn_implementation="eager").eval().vision_model


@pytest.fixture(scope="module")
def llava_video(tmp_path_factory) -> Runtime:
    paths = write_llava_video(tmp_path_factory.mktemp("video"), size=Size(layers=3, image=56))
    return Runtime.load(str(paths.model), text_encoder=str(paths.siglip), frames=FRAMES)


@torch.no_grad()
def test_the_attention_received_and_the_keys_are_those_of_the_layer_that_is_read(runtime, siglip):
    frames = scenes(FRAMES + 2)  # more than go through the tower at once
    encoded = runtime.family.encode_frames(frames)
    seen = {}
    attention = siglip.encoder.layers[1].self_attn  # the tower has two of SigLIP's three layers
    hooks = [
        attention.register_forward_hook(lambda *call: seen.update(weights=call[-1][1])),
        attention.k_proj.register_forward_hook(lambda *call: seen.update(keys=call[-1])),
    ]
    siglip(runtime.family.pixels(frames))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(encoded.received, seen["weights"].mean(dim=(1, 2)))
    by_head = seen["keys"].unflatten(-1, (4, -1))  # (frames, patches, heads, head)
    torch.testing.assert_close(encoded.keys, by_head.mean(dim=2))
    patches = encoded.received.shape[1]
    torch.testing.assert_close(encoded.received.sum(dim=1), torch.ones(len(frames)))
    assert encoded.received.std() > 0.01 / patches


@torch.no_grad()
def test_the_pooling_heads_attention_is_that_to_the_towers_own_output(runtime, siglip):
    tower = runtime.family.encode_frames(scenes(3)).tower_features
    got = runtime.encoder.pooling_attention(scenes(3), tower)
    head, hidden = siglip.head, siglip.post_layernorm(tower)
    width = hidden.shape[-1]
    query, key, _ = head.attention.in_proj_weight.split(width)
    query_bias, key_bias, _ = head.attention.in_proj_bias.split(width)
    q = (head.probe[0, 0] @ query.T + query_bias).view(4, -1)
    k = (hidden @ key.T + key_bias).unflatten(-1, (4, -1))
    weights = (torch.einsum("hd,fphd->fhp", q, k) / q.shape[1] ** 0.5).softmax(dim=-1)
    torch.testing.assert_close(got, weights.mean(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("which", ["runtime", "llava_video"])
def test_patches_are_pooled_as_the_features_are(request, which):
    family = request.getfixturevalue(which).family
    encoded = family.encode_frames(scenes(3))
    pooled = family.pool(family.model.model.multi_modal_projector(encoded.tower_features))
    cells = pooled.shape[1]
    features = encoded.features[: 3 * cells].view(3, cells, -1)
    if which == "runtime":
        torch.testing.assert_close(pooled, features)
        return
    rows, of_features = (
        item.view(3, 3, 4, -1) for item in (pooled, features)
    )  # 7 x 7 patches, 3 x 3 averages
    torch.testing.assert_close(rows[:, :, :3], of_features[:, :, :3])
    torch.testing.assert_close(rows[:, :, 3], rows[:, :, :3].mean(dim=2))  # where a newline token stands


@pytest.mark.parametrize("which", ["runtime", "llava_video"])
def test_a_clip_holds_one_value_per_token_in_float32(request, which):
    runtime = request.getfixturevalue(which)
    clip = runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES))
    saliency = clip.saliency
    head = runtime.family.shape.vision.width // 4
    for name, width in zip(PARTS, ((), (), (head,)), strict=True):
        part = getattr(saliency, name)
        assert part.shape == (FRAMES, clip.cells, *width)
        assert part.dtype == torch.float32
        assert part.isfinite().all()


def test_what_was_stored_without_it_is_computed_again_in_silence(checkpoints, tmp_path, monkeypatch, recwarn):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"stands for a video")
    decoded = []

    def read_frames(path, frames, timeout, *, size):
        decoded.append(path)
        return scenes(frames), np.arange(frames) / 4, frames / 4

    monkeypatch.setattr(video, "read_frames", read_frames)
    cache = FeatureCache(tmp_path / "cache", 2**20)
    runtime = Runtime.load(
        str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=FRAMES, cache=cache
    )
    first = runtime.encode(path)
    (file,) = cache.directory.iterdir()
    stored = cache.get(file.stem)
    cache.put(file.stem, {name: part for name, part in stored.items() if name not in PARTS})
    again, known = runtime.encode(path), runtime.encode(path)
    assert len(decoded) == 2
    assert [file.name for file in cache.directory.iterdir()] == [file.name]
    for clip in (again, known):
        assert clip.features.equal(first.features)
        assert clip.frame_embeddings.equal(first.frame_embeddings)
        for name in PARTS:
            assert getattr(clip.saliency, name).equal(getattr(first.saliency, name))
    question = Question("q", "what color is the ring?", ("red", "dark blue"))
    method = VisionZip(keep_ratio=0.4)
    assert (
        runtime.answer(first, question, method).option_logprobs
        == runtime.answer(known, question, method).option_logprobs
    )
    assert not recwarn.list


def test_answers_recorded_before_clips_held_it_are_found_again(runtime, clip, question):
    """Written out as studies have stored them: a change here makes every recorded answer unknown."""

    def digest(*parts):
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    encoding = digest("5", runtime.identity, runtime.encoder_identity, str(FRAMES), "float32")
    assert runtime.encoding == encoding
    layout, asked = runtime.layout(clip, question), f"{encoding}|words/3|16"
    assert runtime.fingerprint(None, layout) == digest(asked, "unpruned")
    for method, options in (
        (AdaTP(p=0.6), "deduplicate=demote,relevance_norm=minmax,score_query=last"),
        (FastV(), ""),
    ):
        key = method.plan(layout, 12).key()
        assert runtime.fingerprint(method, layout) == digest(asked, method.name, key, options)
