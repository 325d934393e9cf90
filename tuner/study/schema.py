"""The keys of study.yaml and of a line of questions.jsonl, and what each may hold.

A field's description completes the sentence "allowed is ..." of its error message.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pipeline.question import Scoring
from pipeline.video import TIMEOUT
from tuner.study.definition import HELD_OUT

# NUL is in no file's name, and PostgreSQL has no text with it.
Words = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
# Texts that are not empty; spaces around them are a mistake that nobody sees, so they are removed.
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\x00]*$")]
Number = Annotated[float, Field(allow_inf_nan=False)]

# What a database holds, and what no video and no answer comes near.
_MOST_COUNTED = 100_000


class _Edge(BaseModel):
    # strict: "16" is not taken for a number, nor `yes` for a name
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SplitKeys(_Edge):
    """`split:` of study.yaml."""

    held_out: Number = Field(
        default=HELD_OUT,
        gt=0,
        lt=1,
        description="a number between 0 and 1: the fraction of the videos held out",
    )
    seed: int = Field(default=0, ge=-(2**63), lt=2**63, description="a whole number of 64 bits")
    held_out_videos: list[Text] | None = Field(
        default=None, min_length=1, description="a list of video names, instead of held_out and seed"
    )


class SearchKeys(_Edge):
    """`search:` of study.yaml."""

    fixed: dict[str, Number] = Field(default={}, description="a number for each knob that shall not vary")
    bounds: dict[str, Annotated[list[Number], Field(min_length=2, max_length=2)]] = Field(
        default={}, description="[lowest, highest] for each knob whose range is narrowed"
    )
    choices: dict[str, list[str]] = Field(
        default={}, description="a list of one or more names for each choice of AdaTP that is searched"
    )


class StudyKeys(_Edge):
    """study.yaml."""

    name: Text | None = Field(
        default=None, description="a name without '/'; it is the folder's where none is given"
    )
    description: Words = Field(default="", description="text")
    model: Text = Field(
        description="a LLaVA-OneVision or LLaVA-Video checkpoint: a folder, relative to this file, or a "
        "Hugging Face id"
    )
    revision: Text | None = Field(default=None, description="a branch, tag or commit of a Hugging Face id")
    text_encoder: Text = Field(
        description="the SigLIP aligned with the model's vision tower: a folder, relative to this file, or a "
        "Hugging Face id"
    )
    pooling: Literal["average", "bilinear", "max"] | None = Field(
        default=None,
        description="'average', 'bilinear' or 'max', for a LLaVA-Video checkpoint, instead of its own",
    )
    allow_pickle: bool = Field(
        default=False, description="true or false: whether weights stored as pickles may be read"
    )
    allow_outside: bool = Field(
        default=False,
        description="true or false: whether videos and questions may lie outside the study's folder",
    )
    frames: int = Field(
        ge=2,
        le=_MOST_COUNTED,
        description="a whole number from 2 on (to 100000): frames sampled from each video",
    )
    videos: Text = Field(default="videos", description="a folder, relative to this file")
    questions: Text = Field(default="questions.jsonl", description="a file, relative to this one")
    decode_timeout: float = Field(
        default=TIMEOUT,
        gt=0,
        allow_inf_nan=False,
        description="a number above 0: seconds without progress after which decoding a video is given up",
    )
    scoring: Scoring = Field(default="letter", description="'letter', 'words' or 'words_per_token'")
    max_new_tokens: int = Field(
        default=16,
        ge=1,
        le=_MOST_COUNTED,
        description="a whole number from 1 on (to 100000): length of free answers",
    )
    split: SplitKeys = Field(
        default_factory=SplitKeys, description="the keys held_out, seed, held_out_videos"
    )
    search: SearchKeys = Field(default_factory=SearchKeys, description="the keys fixed, bounds, choices")


class QuestionKeys(_Edge):
    """A line of questions.jsonl."""

    id: Text = Field(description="text that no other question has as its id")
    video: Text = Field(description="a file, relative to the videos folder")
    question: Text = Field(description="the question without its options")
    options: list[Text] | None = Field(
        default=None, min_length=2, max_length=26, description="a list of 2 to 26 different texts"
    )
    answer: Text | None = Field(default=None, description="text: one of the options where there are some")
    tags: dict[Text, Words] = Field(default={}, description="an object of texts")
    baseline: Text | None = Field(
        default=None,
        description="text: one of the options where there are some, as the unpruned model answered elsewhere",
    )
