"""Builds everything in this folder: videos, questions and the two trained models. Seeded and resumable.

    python -m studies.demo.build                 # all stages, about four hours on two cores
    python -m studies.demo.build --stage check   # only measures what is there
    python -m studies.demo.build --steps 4 --training-videos 128 --encoder-minutes 0.2   # does it run?

Intermediate files live in studies/demo/.work; deleting that folder starts over. build.json records seed,
training, hardware and what was measured. The SigLIP pair's training is bounded by minutes: a slower machine
wants more of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tuner.study.split import hold_out

from .builder import checkpoint, material
from .builder.train_encoder import train_encoder
from .builder.train_language import PHASES, Phase, train_language

HERE = Path(__file__).parent
WORK = HERE / ".work"
SEED = 20  # of the training data and of the weights
STUDY_SEED = 31  # of the videos and questions that ship
VIDEOS = 400
HELD_OUT = 0.8  # as study.yaml says
# Many videos with few questions each measure best: questions about one video fail together. Videos to tune on
# need to be encoded too, so they are fewer, with more questions each.
QUESTIONS = {"tune": 3, "held_out": 2}
TRAINING_VIDEOS = 3000
STAGES = ("material", "train", "check")


def build_material() -> None:
    names = [material.name(index) for index in range(VIDEOS)]
    held_out = hold_out(names, HELD_OUT, seed=0)
    per_video = [QUESTIONS["held_out" if name in held_out else "tune"] for name in names]
    count = material.write_questions(HERE / "questions.jsonl", seed=STUDY_SEED, per_video=per_video)
    material.write_videos(HERE / "videos", seed=STUDY_SEED, count=VIDEOS)
    print(f"{VIDEOS} videos, {count} questions")


def build_models(encoder_minutes: float, videos: int, phases: tuple[Phase, ...]) -> None:
    WORK.mkdir(exist_ok=True)
    siglip = train_encoder(WORK, seed=SEED, videos=videos, minutes=encoder_minutes).eval()
    model = train_language(WORK, siglip, seed=SEED, videos=videos, phases=phases)
    checkpoint.save(HERE, model, siglip)


def record(measured: dict[str, Any], training: dict[str, Any]) -> None:
    """build.json: what a successor needs to judge or repeat the build."""
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.processor(),
    )
    text = json.dumps(
        {
            "seed": SEED,
            "study_seed": STUDY_SEED,
            "training": training,
            "hardware": {"cpu": cpu, "cores": os.cpu_count(), "torch": torch.__version__},
            "measured": measured,
        },
        indent=2,
    )
    (HERE / "build.json").write_text(text + "\n")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="only these stages (default: all)")
    parser.add_argument(
        "--encoder-minutes", type=float, default=13.5, help="training time of the SigLIP pair"
    )
    parser.add_argument("--training-videos", type=int, default=TRAINING_VIDEOS)
    parser.add_argument(
        "--steps", type=int, help="of each phase of the language model, at most (default: the whole recipe)"
    )
    arguments = parser.parse_args()
    stages = arguments.stage or STAGES
    phases: tuple[Phase, ...] = PHASES
    if arguments.steps is not None:
        phases = tuple(replace(phase, steps=min(arguments.steps, phase.steps)) for phase in PHASES)
    if "material" in stages:
        build_material()
    if "train" in stages:
        build_models(arguments.encoder_minutes, arguments.training_videos, phases)
    if "check" in stages:
        from .builder.check import measure

        record(
            measure(HERE),
            {
                "videos": arguments.training_videos,
                "encoder_minutes": arguments.encoder_minutes,
                "language": [asdict(phase) for phase in phases],
            },
        )


if __name__ == "__main__":
    main()
