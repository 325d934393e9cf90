import numpy as np
import pytest
import torch
from transformers import SiglipModel

from pipeline.checkpoint import find_checkpoint
from pipeline.encoders import load_encoder
from pipeline.errors import ModelError
from tests.checkpoints import Size, build_tokenizer, scenes, write_checkpoints
from tests.pipeline.conftest import FRAMES


@pytest.fixture(scope="module")
def siglip(checkpoints):
    return SiglipModel.from_pretrained(checkpoints.siglip).eval()


@torch.no_grad()
def test_a_frame_embedding_from_tower_features_is_what_the_whole_siglip_gives(runtime, siglip):
    frames = scenes(FRAMES)
    from_tower = runtime._encoder.embed_frames(runtime.family.encode_frames(frames).tower_features)
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
    np.testing.assert_allclose(runtime._encoder.embed_text(text), expected, rtol=0, atol=1e-6)


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
