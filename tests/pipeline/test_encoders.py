import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipModel

from pipeline.checkpoint import find_checkpoint
from pipeline.encoders import load_encoder, load_whole_encoder
from pipeline.errors import ModelError
from tests.checkpoints import Size, build_tokenizer, scenes, write_checkpoints
from tests.pipeline.conftest import FRAMES


@pytest.fixture(scope="module")
def siglip(checkpoints):
    return SiglipModel.from_pretrained(checkpoints.siglip).eval()


@torch.no_grad()
def test_a_frame_embedding_from_tower_features_is_what_the_whole_siglip_gives(runtime, siglip):
    frames = scenes(FRAMES)
    tower = runtime.family.encode_frames(frames).tower_features
    from_tower = runtime.encoder.embed_frames(frames, tower)
    whole = siglip.vision_model(pixel_values=runtime.family.pixels(frames)).pooler_output
    torch.testing.assert_close(from_tower, whole, rtol=0, atol=1e-6)
    assert whole.std() > 0.1  # far from all alike


@torch.no_grad()
@pytest.mark.parametrize("text", ["what color is the ring?", "is the ball on sea, sand or brick? " * 9, ""])
def test_a_text_embedding_is_cut_and_padded_to_the_encoders_length(runtime, siglip, text):
    tokenizer = build_tokenizer()
    ids = tokenizer(text)["input_ids"][:16]
    ids += [tokenizer.pad_token_id] * (16 - len(ids))
    expected = siglip.text_model(input_ids=torch.tensor([ids])).pooler_output[0].numpy()
    np.testing.assert_allclose(runtime.encoder.embed_text(text), expected, rtol=0, atol=1e-6)


def test_scenes_are_told_apart_by_their_frame_embeddings(clip):
    inside, across = clip.frame_similarity[::2], clip.frame_similarity[1::2]
    assert inside.min() > 0.95 > across.max()


@pytest.mark.parametrize("layers", [2, 4])
def test_the_encoder_goes_on_from_the_layer_the_projector_reads(tmp_path, layers):
    """SigLIP may have one layer more than the tower, several, or none."""
    one = write_checkpoints(tmp_path, size=Size(layers=3))
    from pipeline.families import load_family

    family = load_family(find_checkpoint(str(one.model)), device="cpu", dtype="float32", attention="sdpa")
    other = write_checkpoints(tmp_path / "other", size=Size(layers=3, vision_layers=layers))
    encoder = load_encoder(find_checkpoint(str(other.siglip)), family)
    assert encoder.extend(family.shape).vision.extra_layers == layers - 2


@pytest.mark.parametrize("change", [{"vision_width": 64}, {"image": 64}, {"vision_layers": 1}])
def test_a_siglip_of_another_shape_is_refused(tmp_path, runtime, change):
    size = Size(layers=3, **change)
    if size.vision_layers == 1:
        from tests.checkpoints import build_siglip

        build_siglip(size, 40).save_pretrained(tmp_path / "siglip")
        build_tokenizer().save_pretrained(tmp_path / "siglip")
        folder = tmp_path / "siglip"
    else:
        folder = write_checkpoints(tmp_path, size=size).siglip
    with pytest.raises(
        ModelError, match="is not aligned with the model's vision tower: width, patches, numbers in a patch"
    ):
        load_encoder(find_checkpoint(str(folder)), runtime.family)


def test_a_model_of_another_kind_is_refused(checkpoints, runtime):
    with pytest.raises(
        ModelError, match=r"is no SigLIP checkpoint: its config\.json says model_type 'llava_onevision'"
    ):
        load_encoder(find_checkpoint(str(checkpoints.model)), runtime.family)


def test_a_whole_siglip_sees_frames_as_its_own_model_does(runtime, checkpoints):
    """For models whose vision tower is no SigLIP: here the tower is one, so both ways agree."""
    frames = scenes(4)
    device = torch.device("cpu")
    whole = load_whole_encoder(find_checkpoint(str(checkpoints.siglip)), device)
    tower = runtime.family.encode_frames(frames).tower_features
    continued = runtime.encoder.embed_frames(frames, tower)
    torch.testing.assert_close(whole.embed_frames(frames, tower), continued, rtol=1e-4, atol=1e-4)
    for patches in (tower.shape[1], 4):  # the same grid, and another model's
        pooling = whole.pooling_attention(frames, tower[:, :patches])
        assert pooling.shape == (4, patches)
        torch.testing.assert_close(pooling.sum(dim=1), torch.ones(4))
    text = "what color is the ring?"
    np.testing.assert_allclose(whole.embed_text(text), runtime.encoder.embed_text(text), atol=1e-6)


def test_a_whole_siglip_costs_its_own_tower_for_each_frame(runtime, checkpoints):
    whole = load_whole_encoder(find_checkpoint(str(checkpoints.siglip)), torch.device("cpu"))
    frames, tower = scenes(3), torch.zeros(3, 4, 8)
    with FlopCounterMode(display=False) as counter:
        whole.embed_frames(frames, tower)
    vision = whole.extend(runtime.family.shape).vision
    assert vision.frame_embedding() == vision.aligned_frame
    # torch counts fused attention on a CPU as nothing.
    own = whole._config.vision_config
    patches = (own.image_size // own.patch_size) ** 2
    attention = 2 * patches**2 * own.hidden_size * own.num_hidden_layers
    counted = counter.get_total_flops() / 2 / 3
    assert counted == pytest.approx(vision.aligned_frame - attention, rel=0.02)
