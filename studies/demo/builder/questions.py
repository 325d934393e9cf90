"""Questions about a demo video, with the tokens that each reasoning step has to look at.

The wording is fixed and lower case: the demo's language model has a word-level vocabulary. `hops` are known
because the
scenes are; the trainer uses them to say where in the network a step should happen, the study never sees them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scenes import BACKGROUNDS, COLORS, GRID, SAMPLED, SHAPES, STEP, Scene, Thing, Video

CELLS = GRID * GRID
TYPES = ("color", "shape", "place", "background", "order", "after", "below")
PLACES = ("top-left", "top-right", "bottom-left", "bottom-right")
WORDS = (
    "what",
    "color",
    "is",
    "the",
    "on",
    "shape",
    "one",
    "where",
    "background",
    "comes",
    "after",
    "before",
    "in",
    "scene",
    "below",
    "user",
    "assistant",
    "system",
    ",",
    "?",
    ".",
    "a",
    "video",
    "which",
    "and",
    *BACKGROUNDS,
    *SHAPES,
    *COLORS,
    *PLACES,
)


@dataclass(frozen=True)
class Asked:
    """One question about the frames of a window of a video."""

    type: str
    text: str
    answer: str
    options: tuple[str, ...]
    hops: tuple[np.ndarray, ...]  # each: bool (frames * CELLS,), the visual tokens that the step reads
    anchor: np.ndarray  # bool (frames,): frames that show what the text names
    when: str  # start | middle | end: where in the window the answer is seen
    size: str  # small | large | none: the object asked about


@dataclass(frozen=True)
class Window:
    """Sampled frames `first` .. `first + frames` of a video, and which shot each shows."""

    video: Video
    first: int
    frames: int

    @property
    def shots(self) -> list[int]:
        return [self.video.shot_at((self.first + i) * STEP) for i in range(self.frames)]


def _pick(
    rng: np.random.Generator, answer: str, likely: list[str], others: tuple[str, ...]
) -> tuple[str, ...]:
    """Four options in random order; wrong ones are first taken from what the video shows."""
    wrong = [x for x in dict.fromkeys(likely) if x != answer]
    wrong = [wrong[i] for i in rng.permutation(len(wrong))][:3]
    rest = [x for x in others if x != answer and x not in wrong]
    wrong += [rest[i] for i in rng.permutation(len(rest))][: 3 - len(wrong)]
    options = [answer, *wrong]
    return tuple(options[i] for i in rng.permutation(4))


class Asker:
    """Draws questions about one window. Scenes that are seen twice are not used as an anchor of order."""

    def __init__(self, window: Window, rng: np.random.Generator) -> None:
        self.window, self.rng = window, rng
        self.video = window.video
        shots = window.shots
        self.scene_of_frame = np.array([self.video.shots[s].scene for s in shots])
        self.runs: list[tuple[int, int, int]] = []  # scene, first frame, one past the last
        for index, scene in enumerate(self.scene_of_frame):
            if self.runs and self.runs[-1][0] == scene and shots[index] == shots[index - 1]:
                self.runs[-1] = (int(scene), self.runs[-1][1], index + 1)
            else:
                self.runs.append((int(scene), index, index + 1))
        self.shots = shots
        seen = [r[0] for r in self.runs]
        self.visible = sorted(set(seen))
        self.once = [i for i, r in enumerate(self.runs) if seen.count(r[0]) == 1]

    def _frames(self, scene: int) -> np.ndarray:
        return np.asarray(self.scene_of_frame == scene)

    def _tokens(self, frames: np.ndarray) -> np.ndarray:
        return np.repeat(frames, CELLS)

    def _cells(self, thing: Thing, frames: np.ndarray) -> np.ndarray:
        out = np.zeros((self.window.frames, CELLS), dtype=bool)
        for index in np.flatnonzero(frames):
            out[index, self.video.cell_of(thing, (self.window.first + index) * STEP, self.shots[index])] = (
                True
            )
        return out.reshape(-1)

    def _when(self, frames: np.ndarray) -> str:
        middle = (np.flatnonzero(frames).mean() + 0.5) / self.window.frames
        return "start" if middle < 1 / 3 else "end" if middle > 2 / 3 else "middle"

    def _scene(self) -> tuple[Scene, np.ndarray]:
        index = self.visible[int(self.rng.integers(len(self.visible)))]
        return self.video.scenes[index], self._frames(index)

    def _thing(self, scene: Scene) -> Thing:
        return scene.things[int(self.rng.integers(len(scene.things)))]

    def ask(self, kind: str) -> Asked | None:
        """A question of the given type, or None when the window allows none."""
        return getattr(self, f"_ask_{kind}")()  # type: ignore[no-any-return]

    def _done(
        self,
        kind: str,
        text: str,
        answer: str,
        options: tuple[str, ...],
        hops: list[np.ndarray],
        anchor: np.ndarray,
        seen: np.ndarray,
        thing: Thing | None,
    ) -> Asked:
        size = "none" if thing is None else "large" if thing.large else "small"
        return Asked(kind, text, answer, options, tuple(hops), anchor, self._when(seen), size)

    def _all(self, what: str) -> list[str]:
        return [getattr(t, what) for i in self.visible for t in self.video.scenes[i].things]

    def _ask_color(self) -> Asked:
        scene, frames = self._scene()
        thing = self._thing(scene)
        likely = [t.color for t in scene.things]
        return self._done(
            "color",
            f"what color is the {thing.shape} on {scene.background} ?",
            thing.color,
            _pick(self.rng, thing.color, likely, COLORS),
            [self._tokens(frames), self._cells(thing, frames)],
            frames,
            frames,
            thing,
        )

    def _ask_shape(self) -> Asked:
        scene, frames = self._scene()
        thing = self._thing(scene)
        likely = [t.shape for t in scene.things]
        return self._done(
            "shape",
            f"what shape is the {thing.color} one on {scene.background} ?",
            thing.shape,
            _pick(self.rng, thing.shape, likely, SHAPES),
            [self._tokens(frames), self._cells(thing, frames)],
            frames,
            frames,
            thing,
        )

    def _ask_place(self) -> Asked | None:
        scene, frames = self._scene()
        still = [t for t in scene.things if not t.moves]
        if not still:
            return None
        thing = still[int(self.rng.integers(len(still)))]
        row, column = divmod(thing.cell, GRID)
        answer = PLACES[2 * (row >= GRID // 2) + (column >= GRID // 2)]
        return self._done(
            "place",
            f"where is the {thing.color} {thing.shape} on {scene.background} ?",
            answer,
            _pick(self.rng, answer, list(PLACES), PLACES),
            [self._tokens(frames), self._cells(thing, frames)],
            frames,
            frames,
            thing,
        )

    def _ask_background(self) -> Asked | None:
        if len(self.visible) < 2:
            return None
        scene, frames = self._scene()
        pairs = [(t.color, t.shape) for i in self.visible for t in self.video.scenes[i].things]
        unique = [t for t in scene.things if pairs.count((t.color, t.shape)) == 1]
        if not unique:
            return None
        thing = unique[int(self.rng.integers(len(unique)))]
        likely = [self.video.scenes[i].background for i in self.visible]
        cells = self._cells(thing, frames)
        return self._done(
            "background",
            f"on what background is the {thing.color} {thing.shape} ?",
            scene.background,
            _pick(self.rng, scene.background, likely, BACKGROUNDS),
            [cells, cells],
            frames,
            frames,
            thing,
        )

    def _neighbour(self) -> tuple[str, int, int] | None:
        """(after|before, run named in the question, run asked about)."""
        pairs = [("after", i, i + 1) for i in self.once if i + 1 < len(self.runs)]
        pairs += [("before", i, i - 1) for i in self.once if i > 0]
        return pairs[int(self.rng.integers(len(pairs)))] if pairs else None

    def _run_frames(self, run: int) -> np.ndarray:
        frames = np.zeros(self.window.frames, dtype=bool)
        frames[self.runs[run][1] : self.runs[run][2]] = True
        return frames

    def _ask_order(self) -> Asked | None:
        found = self._neighbour()
        if found is None:
            return None
        word, named, asked = found
        name = self.video.scenes[self.runs[named][0]].background
        answer = self.video.scenes[self.runs[asked][0]].background
        likely = [
            self.video.scenes[i].background for i in self.visible if self.video.scenes[i].background != name
        ]
        frames = self._run_frames(asked)
        anchor = self._run_frames(named)
        others = tuple(b for b in BACKGROUNDS if b != name)
        return self._done(
            "order",
            f"what background comes {word} {name} ?",
            answer,
            _pick(self.rng, answer, likely, others),
            [self._tokens(anchor), self._tokens(frames)],
            anchor,
            frames,
            None,
        )

    def _ask_after(self) -> Asked | None:
        found = self._neighbour()
        if found is None:
            return None
        word, named, asked = found
        name = self.video.scenes[self.runs[named][0]].background
        scene = self.video.scenes[self.runs[asked][0]]
        thing = self._thing(scene)
        frames, anchor = self._run_frames(asked), self._run_frames(named)
        hops = [self._tokens(anchor), self._tokens(frames), self._cells(thing, frames)]
        if self.rng.random() < 0.5:
            return self._done(
                "after",
                f"in the scene {word} {name} , what color is the {thing.shape} ?",
                thing.color,
                _pick(self.rng, thing.color, self._all("color"), COLORS),
                hops,
                anchor,
                frames,
                thing,
            )
        return self._done(
            "after",
            f"in the scene {word} {name} , what shape is the {thing.color} one ?",
            thing.shape,
            _pick(self.rng, thing.shape, self._all("shape"), SHAPES),
            hops,
            anchor,
            frames,
            thing,
        )

    def _ask_below(self) -> Asked | None:
        scene, frames = self._scene()
        still = {t.cell: t for t in scene.things if not t.moves}
        pairs = [(t, still[c + GRID]) for c, t in still.items() if c + GRID in still]
        if not pairs:
            return None
        upper, lower = pairs[int(self.rng.integers(len(pairs)))]
        hops = [self._tokens(frames), self._cells(upper, frames), self._cells(lower, frames)]
        if self.rng.random() < 0.5:
            return self._done(
                "below",
                f"on {scene.background} , what shape is below the {upper.color} one ?",
                lower.shape,
                _pick(self.rng, lower.shape, [t.shape for t in scene.things], SHAPES),
                hops,
                frames,
                frames,
                lower,
            )
        return self._done(
            "below",
            f"on {scene.background} , what color is below the {upper.shape} ?",
            lower.color,
            _pick(self.rng, lower.color, [t.color for t in scene.things], COLORS),
            hops,
            frames,
            frames,
            lower,
        )


def whole(video: Video, rng: np.random.Generator) -> Asker:
    return Asker(Window(video, 0, SAMPLED), rng)
