"""LLaMA-Factory's conversations (`messages`, `videos`) and LLaVA's (`conversations`, `video`).

A conversation's first exchange is the question. Later ones may refer to it, and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tuner.importing.normalise import answer_to_prompt, split_prompt
from tuner.importing.rows import Record, Row, UnreadableError, tags_of

SUFFIXES = (".json", ".jsonl")

# role and content, as each family writes them
_KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_PLACEHOLDER = re.compile(r"<(?:video|image)>")


def read(record: Record) -> Row:
    """The first exchange. Errors: UnreadableError."""
    turns = _turns(record.values)
    notes = []
    if turns and turns[0][0] == "system":
        turns = turns[1:]
        notes.append("system message left out")
    if [role for role, _ in turns[:2]] != ["user", "assistant"]:
        raise UnreadableError("the conversation does not begin with a user's and an assistant's message")
    if len(turns) > 2:
        notes.append("later exchanges left out, as they may refer to the first")
    (_, asked), (_, said) = turns[:2]
    question, options = split_prompt(_without_placeholder(asked))
    return Row(
        place=record.place,
        # LLaVA's own ids repeat.
        id=f"{record.stem}-{record.number}",
        video=_video(record.values),
        question=question,
        options=options,
        answer=answer_to_prompt(said, options),
        tags=tags_of(record.values, "data_source"),
        notes=tuple(notes),
    )


def _turns(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    key = next((key for key in _KEYS if isinstance(values.get(key), list)), None)
    if key is None:
        raise UnreadableError(f"there is no conversation; allowed are the keys {', '.join(_KEYS)}")
    role, content = _KEYS[key]
    found = []
    for turn in values[key]:
        who = turn.get(role) if isinstance(turn, dict) else None
        what = turn.get(content) if isinstance(turn, dict) else None
        if not isinstance(who, str) or who not in _ROLES or not isinstance(what, str):
            raise UnreadableError(
                f"{turn!r} is no message; allowed are {role} ({', '.join(_ROLES)}) and {content}"
            )
        found.append((_ROLES[who], what))
    return found


def _without_placeholder(text: str) -> str:
    """The question without the mark that says where the video stands, which is at one of its ends."""
    rest = text.strip()
    if len(_PLACEHOLDER.findall(rest)) > 1:
        raise UnreadableError("several videos or images are asked about; allowed is one video")
    if found := _PLACEHOLDER.search(rest):
        if found.start() > 0 and found.end() < len(rest):
            raise UnreadableError(f"{found[0]} stands within the question; allowed is its beginning or end")
        rest = _PLACEHOLDER.sub("", rest)
    return rest


def _video(values: Mapping[str, Any]) -> str:
    videos = values.get("videos", values.get("video"))
    if isinstance(videos, str):
        videos = [videos]
    if not isinstance(videos, list) or len(videos) != 1 or not isinstance(videos[0], str) or not videos[0]:
        raise UnreadableError(f"the video is {videos!r}; allowed is the name of one file")
    if values.get("images"):
        raise UnreadableError("there are images beside the video; allowed is one video")
    return videos[0]
