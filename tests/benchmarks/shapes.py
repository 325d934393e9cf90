"""Models in the sizes of published checkpoints, with random weights: what the speed benchmarks run on.

Time, memory and FLOPs depend on the sizes alone, so no checkpoint has to be at hand. Only configuration,
processor and tokenizer are written to a folder; the modules are made on the device, in the dtype they run in,
and put together as `Runtime.load` does.

Random weights put the embeddings of all frames close together. Segments are still wanted, since selection
works on them: `Setup.adatp` sets tau_s between the similarities across the video's cuts and the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast, SiglipModel
from transformers.initialization import no_init_weights

from pipeline.checkpoint import Checkpoint
from pipeline.clip import Clip
from pipeline.encoders import TowerEncoder
from pipeline.families.base import Family
from pipeline.families.llava_onevision import LlavaOnevision
from pipeline.families.llava_video import LlavaVideo
from pipeline.keep_ratio import Unreachable, solve_keep_ratio
from pipeline.measure import device_name
from pipeline.methods import AdaTP
from pipeline.question import Question
from pipeline.runtime import Runtime
from tests.checkpoints import (
    WORDS,
    Size,
    build_model,
    build_qwen_tokenizer,
    build_siglip,
    build_tokenizer,
    scenes,
    write_processor,
)
from tests.videos import write_video

SCENES = 6
FRAMES_PER_SCENE = 20
QUESTION_WORDS = 24

_SIGLIP = {
    "image": 384,
    "patch": 14,
    "vision_width": 1152,
    "vision_mlp": 4304,
    "vision_layers": 27,
    "text_layers": 27,
    "text_length": 64,
    "vision_heads": 16,
}


SIZES = {
    "tiny": Size(
        image=96
    ),  # for tests of the benchmarks: 36 tokens per frame, so that the video outweighs the text
    # llava-hf/llava-onevision-qwen2-0.5b-ov-hf and -7b-ov-hf, both with google/siglip-so400m-patch14-384.
    "0.5b": Size(
        hidden=896, layers=24, heads=14, kv_heads=2, mlp=4864, vocabulary=152_000, tied=True, **_SIGLIP
    ),
    "7b": Size(
        hidden=3584, layers=28, heads=28, kv_heads=4, mlp=18944, vocabulary=152_128, tied=False, **_SIGLIP
    ),
}
# lmms-lab/LLaVA-Video-7B-Qwen2: the same parts, other tokens a frame and another prompt.
SIZES["llava-video-7b"] = SIZES["7b"]
SIZES["llava-video-tiny"] = Size(image=192, vocabulary=512)  # for tests of the benchmarks


@dataclass(frozen=True, eq=False)
class Setup:
    """A model, a video file and questions to ask about it."""

    runtime: Runtime
    video: Path
    questions: tuple[Question, ...]

    def adatp(self, clip: Clip, *, flops_ratio: float | None = None, p: float = 0.85) -> AdaTP:
        """AdaTP with the video's scenes as segments: its defaults solved for a FLOPs ratio, or, at p, with
        nothing boosted.
        """
        between = np.sort(clip.frame_similarity)
        cuts = min(SCENES - 1, len(between) - 1)
        tau_s = float((between[cuts - 1] + between[cuts]) / 2) if cuts > 0 else AdaTP().tau_s
        if flops_ratio is None:
            return AdaTP(tau_s=tau_s, tau_t=2.0, p=p)
        layouts = [self.runtime.layout(clip, question) for question in self.questions]
        solved = solve_keep_ratio(AdaTP(tau_s=tau_s), layouts, self.runtime.shape, flops_ratio)
        if isinstance(solved, Unreachable):
            raise SystemExit(
                f"A FLOPs ratio of {flops_ratio} is out of reach; {solved.smallest:.4f} is the smallest."
            )
        return solved


def add_options(parser: argparse.ArgumentParser, *, repeats: int) -> None:
    """The options all speed benchmarks share."""
    parser.add_argument("--shape", choices=SIZES, default="0.5b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="by default the device's")
    parser.add_argument("--frames", type=int, default=8, help="sampled from the video (default: 8)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU (default: 1)")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"(default: {repeats})")


def set_up(options: argparse.Namespace, folder: Path, *, questions: int) -> Setup:
    """The model, video and questions that `add_options` asked for; its files go to `folder`."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    runtime = build(options.shape, folder, device=device, dtype=getattr(torch, dtype), frames=options.frames)
    return Setup(runtime, film(folder / "film.mp4"), ask(questions))


def headline(options: argparse.Namespace, runtime: Runtime) -> str:
    """What is measured on what, in one line."""
    dtype = str(runtime.family.dtype).removeprefix("torch.")
    return f"{options.shape} shape, random weights, {dtype}, {options.frames} frames, {device_name(runtime)}"


def build(
    name: str, folder: Path, *, device: torch.device, dtype: torch.dtype, frames: int, seed: int = 0
) -> Runtime:
    """A runtime of that shape. Question and text tower tokens come from a small vocabulary; lm_head has the
    published one's size.
    """
    size = SIZES[name]
    folder.mkdir(parents=True, exist_ok=True)
    write_processor(folder, size.image, size.patch)
    video = name.startswith("llava-video")
    tokenizer = build_tokenizer()
    text_tokenizer = build_tokenizer(model_max_length=size.text_length)
    model, siglip = draw_modules(size, tokenizer, len(text_tokenizer), device=device, dtype=dtype, seed=seed)
    family: Family = LlavaOnevision(Checkpoint(name, folder, f"random:{name}"), model, tokenizer)
    if video:
        # As its loader does: the last row of the embedding, which no token uses, stands for visual tokens.
        model.config.video_token_id = size.vocabulary - 1
        family = LlavaVideo(model, build_qwen_tokenizer(), tells_times=True)
    return Runtime(
        family,
        TowerEncoder(siglip, text_tokenizer, family.applied_vision_layers),
        identity=f"random:{name}:{seed}",
        encoder_identity=f"random:{name}:{seed}",
        frames=frames,
        scoring="letter",  # options of one token each: the prefill is all there is to an answer
    )


def draw_modules(
    size: Size,
    tokenizer: PreTrainedTokenizerFast,
    text_vocabulary: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
) -> tuple[LlavaOnevisionForConditionalGeneration, SiglipModel]:
    """The video model in that number format, and its SigLIP in float32, made on the device."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), torch.device(device), no_init_weights():
        torch.manual_seed(seed)
        siglip = build_siglip(size, text_vocabulary).requires_grad_(requires_grad=False)
        _draw(siglip)
        with _default_dtype(dtype):
            model = build_model(size, tokenizer, siglip).requires_grad_(requires_grad=False)
        model.tie_weights()
        _draw(model, but="vision_tower")  # these are the SigLIP's
    return model, siglip


@torch.no_grad()
def _draw(model: torch.nn.Module, *, but: str = "nothing") -> None:
    """Weights that keep the size of what goes through them: each matrix by its number of inputs.

    The library's own initialisation of a 0.5B model takes a minute on one core, and is thrown away here.
    """
    for name, parameter in model.named_parameters():
        if but in name:
            continue
        if parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside hold this dtype; what a model keeps in float32 by itself stays so."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def film(path: Path, height: int = 360, width: int = 640) -> Path:
    """An mp4 of five seconds: still scenes with hard cuts between them."""
    stills = scenes(SCENES, scene_length=1, height=height, width=width)
    return write_video(path, stills.repeat(FRAMES_PER_SCENE, axis=0))


def ask(count: int, words: Sequence[str] = WORDS) -> tuple[Question, ...]:
    """Questions of equal length, no two alike."""
    drawn = np.random.default_rng(0)
    return tuple(
        Question(
            f"q{i}",
            " ".join(drawn.choice([word for word in words if word.isalpha()], QUESTION_WORDS)) + "?",
            ("red", "green", "blue", "yellow"),
        )
        for i in range(count)
    )
