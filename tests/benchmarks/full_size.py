"""A checkpoint of published size, from its files through the whole program.

    python -m tests.benchmarks.full_size --shape 7b --device cuda --folder /tmp/full-size

Weights are random (see `shapes`), so answers and accuracy mean nothing. What is measured does not depend on
them: writing and reading the files, the checks of a model on its device, a search with all its parts, and the
device's memory beside what was planned. The commands are those of a user; each runs in a process of its own
with the study's folder as its own. A folder that holds the checkpoint already is used again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.shapes import FRAMES_PER_SCENE, SCENES, SIZES, draw_modules
from tests.checkpoints import WORDS, build_tokenizer, scenes, write_processor
from tests.videos import write_video

SHARD = "5GB"  # as the published files are cut


def write_model(shape: str, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Model and SigLIP in the layout of llava-hf and google; the model's weights as `dtype`."""
    size, words = SIZES[shape], build_tokenizer()
    text_words = build_tokenizer(model_max_length=size.text_length)
    model, siglip = draw_modules(size, words, len(text_words), device=device, dtype=dtype)
    model.save_pretrained(folder / "model", max_shard_size=SHARD)
    words.save_pretrained(folder / "model")
    write_processor(folder / "model", size.image, size.patch)
    siglip.save_pretrained(folder / "siglip")
    text_words.save_pretrained(folder / "siglip")


def write_study(folder: Path, *, videos: int, questions: int, frames: int) -> Path:
    """Videos of coloured scenes, each with as many questions; the answers are made up."""
    study = folder / "studies" / "full"
    (study / "videos").mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(0)
    words = [word for word in WORDS if word.isalpha()]
    options = ["red", "green", "blue", "yellow"]
    lines = []
    for index in range(videos):
        stills = scenes(SCENES, scene_length=1, height=360, width=640)
        order = drawn.permutation(SCENES)
        write_video(study / "videos" / f"{index}.mp4", stills[order].repeat(FRAMES_PER_SCENE, axis=0))
        lines += [
            {
                "id": f"{index}-{number}",
                "video": f"{index}.mp4",
                "question": " ".join(drawn.choice(words, 16)) + "?",
                "options": options,
                "answer": options[int(drawn.integers(4))],
            }
            for number in range(questions)
        ]
    (study / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (study / "study.yaml").write_text(
        f"name: full\nmodel: ../../model\ntext_encoder: ../../siglip\nframes: {frames}\nvideos: videos\n"
        "questions: questions.jsonl\nscoring: letter\n"
        "split:\n  held_out: 0.5\n  seed: 0\n"
    )
    return study


class Watch:
    """The most memory of the first GPU that all processes together held, above what was held before."""

    def __init__(self) -> None:
        self._before = self.highest = self._held()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    @staticmethod
    def _held() -> int:
        if not torch.cuda.is_available():
            return 0
        free, total = torch.cuda.mem_get_info()
        return total - free

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            self.highest = max(self.highest, self._held())

    def end(self) -> int:
        """Bytes."""
        self._ended.set()
        self._thread.join()
        return self.highest - self._before


def tuner(folder: Path, *arguments: str) -> None:
    """One command, with its time, its end and the GPU's memory."""
    print(f"$ tuner {' '.join(arguments)}", flush=True)
    watch, began = Watch(), time.monotonic()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[1:]])
    }
    code = subprocess.run(
        [sys.executable, "-m", "tuner.cli.entry", *arguments], cwd=folder, env=environment, check=False
    ).returncode
    print(
        f"-> exit {code}, {time.monotonic() - began:.1f} s, GPU memory at most {watch.end() / 2**30:.2f} GiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--questions", type=int, default=4, help="of a video")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="one search for each number")
    options = parser.parse_args()
    device = torch.device(options.device)
    if not (options.folder / "siglip" / "tokenizer.json").is_file():
        began = time.monotonic()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        write_model(options.shape, options.folder, device, dtype)
        print(f"checkpoint written in {time.monotonic() - began:.1f} s", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    write_study(options.folder, videos=options.videos, questions=options.questions, frames=options.frames)
    study = ("--study", "full")
    tuner(options.folder, "check", *study, "--model")
    for workers in options.workers:
        tuner(
            options.folder, "run", *study, "--budget", "0.3", "--trials", str(options.trials),
            "--batch", str(options.batch), "--workers", str(workers), "--accept-weak-baseline",
            "--database", f"sqlite:///{options.folder.resolve()}/records-{workers}.db",
            "--storage", str(options.folder / f"features-{workers}"),
        )  # fmt: skip


if __name__ == "__main__":
    main()
