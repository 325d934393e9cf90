"""The demo with its first videos only: a whole study that is run in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import studies.demo

DEMO = Path(studies.demo.__file__).parent


def small_study(folder: Path, videos: int = 6) -> Path:
    """Written into `folder`/small, and `folder` returned; model and text encoder are links to the demo's."""
    study = folder / "small"
    (study / "videos").mkdir(parents=True)
    names = sorted(path.name for path in (DEMO / "videos").glob("*.mp4"))[:videos]
    for name in names:
        shutil.copy(DEMO / "videos" / name, study / "videos")
    for name in ("model", "siglip"):
        (study / name).symlink_to(DEMO / name)
    lines = (DEMO / "questions.jsonl").read_text().splitlines(keepends=True)
    (study / "questions.jsonl").write_text("".join(x for x in lines if json.loads(x)["video"] in names))
    (study / "study.yaml").write_text(
        (DEMO / "study.yaml").read_text().replace("name: demo\n", "name: small\n")
    )
    return folder
