"""A study's definition in its records, and back: what is read of a study without its files."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from tuner.records.values import StudyRecord
from tuner.study import Study

_STUDY = TypeAdapter(Study)
# Videos, questions and the split are tables of their own; where the files lie is of no use elsewhere.
_APART = {"videos", "questions", "held_out", "skipped", "folder", "questions_file"}


def definition(study: Study) -> dict[str, Any]:
    """What study.yaml says, as plain data."""
    values: dict[str, Any] = _STUDY.dump_python(study, mode="json", exclude=_APART)
    return values


def recorded_study(record: StudyRecord) -> Study:
    """The study as it was last run, with the split that was used. Videos have names, but no files; those that
    could not be read, and their questions, are left out.
    """
    tags = {question.id: dict(question.tags) for question in record.questions}
    settings, setting = record.parts["settings"], record.setting
    # What every record says; a study that was migrated and not run since has no more.
    least = {
        "name": record.name,
        "folder": ".",
        "questions_file": "questions.jsonl",
        "model": setting.get("model", settings["model"]),
        "revision": setting.get("model_revision"),
        "text_encoder": setting.get("text_encoder", record.text_encoder_identity),
        "frames": settings["frames"],
        "scoring": settings["scoring"],
        "max_new_tokens": settings["max_new_tokens"],
    }
    videos = sorted({question.video for question in record.questions})
    return _STUDY.validate_python(
        {
            **least,
            **record.definition,
            "videos": [{"name": name, "path": name} for name in videos],
            "questions": [
                {
                    "id": question["id"],
                    "text": question["question"],
                    "options": question["options"],
                    "video": question["video"],
                    "answer": question["answer"],
                    "tags": tags[question["id"]],
                }
                for question in record.parts["questions"]
            ],
            "held_out": {question.video for question in record.questions if question.split == "held_out"},
        }
    )
