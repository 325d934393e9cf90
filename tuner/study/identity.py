"""The identity of a study: its hash, and a description of what differs between two identities.

The identity covers everything that an answer, or whether it is right, depends on: model revision, encoding,
the bytes of the videos, the questions in their order, the split. Name, description, tags and the search are
not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tuner.errors import UserError
from tuner.study.definition import Study

# Of more names than this the rest is counted, not listed.
_MOST_LISTED = 5


@dataclass(frozen=True)
class StudyIdentity:
    """The hash of a study, and what it covers as plain JSON data, from which a change can be described."""

    hash: str
    parts: dict[str, Any]


def study_identity(
    study: Study, *, model: str, encoding: str, content_hashes: Mapping[str, str]
) -> StudyIdentity:
    """The identity of a study with this model identity, encoding identity and hash of each video's bytes, by
    name.

    Errors: UserError if the same bytes are in both splits under different names: a video that chose a
    configuration must not also measure it.
    """
    _refuse_leaks(study, content_hashes)
    # Whether free answers count as right is stored with the trials, so other rules make another study.
    from pipeline.answering import MATCHING_VERSION

    free = any(question.options is None for question in study.questions)
    matching = {"matching": MATCHING_VERSION} if free else {}
    parts = {
        "settings": {
            "model": model,
            "encoding": encoding,
            "frames": study.frames,
            "scoring": study.scoring,
            "max_new_tokens": study.max_new_tokens,
            **matching,
        },
        "videos": {video.name: content_hashes[video.name] for video in study.videos},
        "questions": [
            {
                "id": question.id,
                "video": question.video,
                "question": question.text,
                "options": None if question.options is None else list(question.options),
                "answer": question.answer,
            }
            for question in study.questions
        ],
        "held_out": sorted(study.held_out),
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return StudyIdentity(hashlib.sha256(text.encode()).hexdigest(), parts)


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences between two identities' parts, a sentence each."""
    return [
        *_settings_changes(old["settings"], new["settings"]),
        *_entry_changes("video", old["videos"], new["videos"]),
        *_question_changes(old["questions"], new["questions"]),
        *_split_changes(old, new),
    ]


def _refuse_leaks(study: Study, content_hashes: Mapping[str, str]) -> None:
    names = defaultdict(list)
    for video in study.videos:
        names[content_hashes[video.name]].append(video.name)
    leaks = [same for same in names.values() if 0 < sum(name in study.held_out for name in same) < len(same)]
    if leaks:
        raise UserError(
            [
                f"the same video is tuned on and held out under different names: {', '.join(same)}; "
                "keep one of them, or name the held-out videos in split.held_out_videos"
                for same in leaks
            ]
        )


def _settings_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    changes = [
        f"{name}: {old[name]} before, {new[name]} now"
        for name in ("frames", "scoring", "max_new_tokens")
        if old[name] != new[name]
    ]
    if old.get("matching") != new.get("matching"):
        changes.append("this version compares free answers by other rules")
    if old["model"] != new["model"]:
        changes.append(f"the model is another one: {old['model']} before, {new['model']} now")
    # The encoding covers model and frames too: it is named only if these are the same.
    elif old["encoding"] != new["encoding"] and old["frames"] == new["frames"]:
        changes.append(
            "videos and questions are encoded differently: another text encoder or another preprocessing"
        )
    return changes


def _entry_changes(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    groups = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in old if name in new and old[name] != new[name]],
    }
    return [_counted(kind, names, what) for what, names in groups.items() if names]


def _question_changes(old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[str]:
    before = {question["id"]: question for question in old}
    after = {question["id"]: question for question in new}
    changes = _entry_changes("question", before, after)
    fields = sorted(
        {
            name
            for key in before.keys() & after.keys()
            for name in after[key]
            if before[key][name] != after[key][name]
        }
    )
    if fields:  # the sentence on changed questions is the last
        changes[-1] += f": {', '.join(fields)}"
    if not changes and list(before) != list(after):
        changes.append("the questions are in another order")
    return changes


def _split_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Changes of the split for videos that are in both; the others are listed as added or removed."""
    both = old["videos"].keys() & new["videos"].keys()
    before, after = set(old["held_out"]) & both, set(new["held_out"]) & both
    moved = {"held out": sorted(after - before), "tuned on": sorted(before - after)}
    return [_counted("video", names, f"now {what}") for what, names in moved.items() if names]


def _counted(kind: str, names: list[str], what: str) -> str:
    listed = ", ".join(names[:_MOST_LISTED])
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"{len(names)} {kind}{'s' if len(names) > 1 else ''} {what} ({listed}{more})"
