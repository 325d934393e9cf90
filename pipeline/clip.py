"""One encoded video: all that later steps need of it, for every question and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.layout import FloatArray, Layout

if TYPE_CHECKING:
    import torch

    from pipeline.prompt import Prompt


@dataclass(frozen=True)
class ClipShape:
    """All of an encoded video that a prompt depends on: when its frames were taken, and how many tokens they
    are. Hashable.
    """

    seconds: float  # length of the video
    times: tuple[float, ...]  # of the frames, seconds after the first frame of the video
    cells: int  # visual tokens per frame
    trailing: int  # newline tokens after the last frame

    @property
    def visual(self) -> int:
        """Visual tokens that may be pruned."""
        return len(self.times) * self.cells


@dataclass(frozen=True, eq=False)
class Saliency:
    """What the vision side says of each visual token, patches pooled as the family pools features; float32.

    For methods that prune before the language model and so have no attention of its own to go by.
    """

    pooling: torch.Tensor  # (frames, cells) attention of SigLIP's pooling head, mean over heads
    # (frames, cells) attention received in the layer whose output the projector reads, mean over heads and
    # queries.
    received: torch.Tensor
    keys: torch.Tensor  # (frames, cells, head) that layer's keys, mean over heads

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.pooling.nbytes + self.received.nbytes + self.keys.nbytes

    def to(self, device: torch.device) -> Saliency:
        """The same on `device`."""
        return Saliency(*(part.to(device) for part in (self.pooling, self.received, self.keys)))


@dataclass(frozen=True, eq=False)
class Clip:
    """Visual tokens and frame embeddings of a video's sampled frames."""

    path: str
    content_hash: str  # of the file's bytes
    frame_times: NDArray[np.float64]  # (frames,) seconds
    features: torch.Tensor  # (frames * cells + trailing, hidden) as the language model reads them
    frame_embeddings: torch.Tensor  # (frames, E) float32, SigLIP's global token of each frame
    saliency: Saliency
    cells: int  # visual tokens per frame
    trailing: int  # newline tokens at the end
    seconds: float  # length of the video
    # What a family's decoder reads of the video beside `features`, by the family's own names; none in LLaVA.
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def shape(self) -> ClipShape:
        """What a prompt depends on."""
        return ClipShape(self.seconds, tuple(self.frame_times.tolist()), self.cells, self.trailing)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        own = self.features.nbytes + self.frame_embeddings.nbytes + self.saliency.nbytes
        return own + sum(tensor.nbytes for tensor in self.extra.values())

    @property
    def frames(self) -> int:
        """Sampled frames."""
        return len(self.frame_times)

    @cached_property
    def unit_frames(self) -> FloatArray:
        """(frames, E) frame embeddings of length one."""
        frames = self.frame_embeddings.detach().to("cpu").double().numpy()
        unit: FloatArray = frames / np.linalg.norm(frames, axis=1, keepdims=True)
        return unit

    @cached_property
    def frame_similarity(self) -> FloatArray:
        """(frames - 1,) cosine of neighbouring frames."""
        similarity: FloatArray = (self.unit_frames[:-1] * self.unit_frames[1:]).sum(axis=1)
        return similarity

    def layout(self, text_embedding: NDArray[np.floating], prompt: Prompt) -> Layout:
        """The layout of a question with this embedding (E,) and this prompt."""
        text = np.asarray(text_embedding, dtype=np.float64)
        text_after = len(prompt.after)
        return Layout(
            frames=self.frames,
            cells=self.cells,
            trailing=self.trailing,
            text_before=len(prompt.ids) - len(prompt.visual) - self.trailing - text_after,
            text_after=text_after,
            frame_similarity=self.frame_similarity,
            frame_relevance=self.unit_frames @ (text / np.linalg.norm(text)),
            question_tokens=prompt.question.stop - prompt.question.start,
        )
