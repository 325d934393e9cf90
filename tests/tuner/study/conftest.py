from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

YAML = """\
model: model
text_encoder: siglip
frames: 8
"""


@dataclass
class StudyFiles:
    """A study's folder under construction; its videos are files whose bytes nobody decodes."""

    folder: Path
    yaml: str = YAML
    lines: list[dict[str, Any] | str] = field(
        default_factory=lambda: [
            {
                "id": f"q{number}",
                "video": f"v{number // 2}.mp4",
                "question": "which color?",
                "options": ["red", "blue"],
                "answer": "red",
                "tags": {"type": "color"},
            }
            for number in range(8)
        ]
    )

    def write(self) -> Path:
        """Write everything that is not there yet; returns the folder."""
        (self.folder / "videos").mkdir(parents=True, exist_ok=True)
        (self.folder / "study.yaml").write_text(self.yaml, encoding="utf-8")
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in self.lines)
        (self.folder / "questions.jsonl").write_text(text, encoding="utf-8")
        for number in range(4):
            path = self.folder / "videos" / f"v{number}.mp4"
            if not path.exists():
                path.write_bytes(f"video {number}".encode())
        for name, model_type in (("model", "llava_onevision"), ("siglip", "siglip")):
            (self.folder / name).mkdir(exist_ok=True)
            config = self.folder / name / "config.json"
            if not config.exists():
                config.write_text(json.dumps({"model_type": model_type}))
        return self.folder


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFiles:
    """A right study at ./studies/mine of an otherwise empty working directory."""
    monkeypatch.chdir(tmp_path)
    return StudyFiles(Path("studies") / "mine")
