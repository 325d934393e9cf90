"""The demo's world: short rendered scenes with textured backgrounds and a few small coloured shapes.

A video is a timeline of scenes. Frames are rendered at `SIZE` x `SIZE` pixels; the model sees 4 x 4 cells of
a frame as
one visual token each, so every object sits in a cell of its own and a question about it needs that cell's
token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SIZE = 128  # pixels
GRID = 4  # cells per side
CELL = SIZE // GRID
FPS = 8
SAMPLED = 32  # frames that the study samples from each video
STEP = 4  # video frames between two sampled ones
TOTAL = (SAMPLED - 1) * STEP + 1  # linspace(0, TOTAL - 1, SAMPLED) then falls on every STEP-th frame

BACKGROUNDS = (
    "brick",
    "sea",
    "sand",
    "grass",
    "snow",
    "wood",
    "stone",
    "lava",
    "night",
    "cloud",
    "tiles",
    "carpet",
)
SHAPES = ("circle", "square", "triangle", "ring", "cross", "bar")
COLORS = ("red", "green", "blue", "yellow", "purple", "white")
_RGB = {
    "red": (225, 30, 35),
    "green": (30, 190, 50),
    "blue": (35, 70, 235),
    "yellow": (250, 225, 30),
    "purple": (165, 40, 200),
    "white": (250, 250, 250),
}
SMALL, LARGE = 9.5, 14.5  # half extents in pixels


@dataclass(frozen=True)
class Thing:
    """One object of a scene; it may move to a neighbouring free cell during the scene."""

    shape: str
    color: str
    cell: int  # row * GRID + column at the scene's start
    end_cell: int  # equal to `cell` when it stands still
    large: bool
    jitter: tuple[float, float]  # pixels

    @property
    def moves(self) -> bool:
        return self.cell != self.end_cell


@dataclass(frozen=True)
class Scene:
    background: str
    things: tuple[Thing, ...]
    drift: tuple[float, float]  # background motion, pixels per frame
    sway: tuple[float, float]  # camera sway amplitude in pixels
    offset: tuple[int, int]


@dataclass(frozen=True)
class Shot:
    """A stretch of the timeline in which one scene is shown: frames `start` (inclusive) to `end`
    (exclusive)."""

    scene: int
    start: int
    end: int
    dissolve: int  # frames over which the shot fades in from the one before; 0 is a hard cut


@dataclass(frozen=True)
class Video:
    scenes: tuple[Scene, ...]
    shots: tuple[Shot, ...]

    def shot_at(self, frame: int) -> int:
        for index, shot in enumerate(self.shots):
            if frame < shot.end:
                return index
        raise IndexError(frame)

    def mix_at(self, frame: int) -> tuple[int, int, float]:
        """(shot shown, shot fading, weight of the fading one): fades are centred on the cut."""
        index = self.shot_at(frame)
        shot = self.shots[index]
        if shot.dissolve and frame - shot.start < shot.dissolve / 2:
            return index, index - 1, 0.5 - (frame - shot.start + 0.5) / shot.dissolve
        if index + 1 < len(self.shots):
            after = self.shots[index + 1]
            if after.dissolve and shot.end - frame <= after.dissolve / 2:
                return index, index + 1, 0.5 - (shot.end - frame - 0.5) / after.dissolve
        return index, index, 0.0

    def progress(self, frame: int, shot: int) -> float:
        """How far the scene's motion has come, 0 to 1; it goes on when a scene comes back."""
        scene = self.shots[shot].scene
        spans = [s for s in self.shots if s.scene == scene]
        length = sum(s.end - s.start for s in spans)
        done = sum(min(max(frame - s.start, 0), s.end - s.start) for s in spans)
        return min(max(done / max(length - 1, 1), 0.0), 1.0)

    def cell_of(self, thing: Thing, frame: int, shot: int) -> int:
        return thing.end_cell if self.progress(frame, shot) > 0.5 else thing.cell


def random_scene(rng: np.random.Generator, background: str) -> Scene:
    count = int(rng.integers(3, 6))
    shapes = rng.permutation(len(SHAPES))[:count]
    colors = rng.permutation(len(COLORS))[:count]
    cells: list[int] = []
    while len(cells) < count:
        if cells and rng.random() < 0.4:  # often directly below another, so that "below" can be asked
            cell = cells[int(rng.integers(len(cells)))] + GRID
        else:
            cell = int(rng.integers(GRID * GRID))
        if cell < GRID * GRID and cell not in cells:
            cells.append(cell)
    taken = set(cells)
    things = []
    for shape, color, cell in zip(shapes, colors, cells, strict=True):
        end = cell
        if rng.random() < 0.25:
            row, column = divmod(cell, GRID)
            near = [
                r * GRID + c
                for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
                if 0 <= r < GRID and 0 <= c < GRID and r * GRID + c not in taken
            ]
            if near:
                end = near[int(rng.integers(len(near)))]
                taken.add(end)
        jitter = (float(rng.uniform(-2, 2)), float(rng.uniform(-2, 2)))
        things.append(Thing(SHAPES[shape], COLORS[color], cell, end, bool(rng.random() < 0.5), jitter))
    drift = (float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.6, 0.6)))
    sway = (float(rng.uniform(0, 2)), float(rng.uniform(0, 2)))
    return Scene(background, tuple(things), drift, sway, (int(rng.integers(256)), int(rng.integers(256))))


def random_video(rng: np.random.Generator, *, shots: int | None = None) -> Video:
    """1 to 12 shots over `SAMPLED` sampled frames, each shot on at least one of them."""
    count = int(rng.integers(1, 13)) if shots is None else shots
    cuts = np.sort(rng.choice(np.arange(1, SAMPLED), size=count - 1, replace=False))
    names = rng.permutation(len(BACKGROUNDS))
    scenes: list[Scene] = []
    order: list[int] = []
    returned = False
    for index in range(count):
        if index >= 2 and not returned and rng.random() < 0.12:  # a scene comes back
            order.append(order[int(rng.integers(index - 1))])
            returned = True
            continue
        order.append(len(scenes))
        scenes.append(random_scene(rng, BACKGROUNDS[names[len(scenes)]]))
    starts = [0] + [int(cut) * STEP - int(rng.integers(1, STEP)) for cut in cuts]
    ends = [*starts[1:], TOTAL]
    fades = [0] + [4 if rng.random() < 0.4 else 0 for _ in cuts]
    shot_list = [Shot(s, a, b, f) for s, a, b, f in zip(order, starts, ends, fades, strict=True)]
    return Video(tuple(scenes), tuple(shot_list))


def _noise(
    rng: np.random.Generator, size: int, low: float, high: float, stretch: tuple[float, float] = (1, 1)
) -> np.ndarray:
    """Periodic band-limited noise with zero mean and unit deviation. Shape: (size, size)."""
    fy = np.fft.fftfreq(size)[:, None] * size * stretch[0]
    fx = np.fft.fftfreq(size)[None, :] * size * stretch[1]
    radius = np.hypot(fy, fx)
    spectrum = np.fft.fft2(rng.standard_normal((size, size))) * ((radius >= low) & (radius <= high))
    field = np.real(np.fft.ifft2(spectrum))
    return field / (field.std() + 1e-9)


@lru_cache(maxsize=1)
def textures() -> dict[str, np.ndarray]:
    """Every background as a periodic tile of 256 x 256 pixels, float32 in 0 .. 255. Shape: (256, 256, 3)."""
    size = 256
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:size, 0:size].astype(np.float64)

    def paint(
        base: tuple[int, int, int], field: np.ndarray, amount: float | tuple[float, float, float]
    ) -> np.ndarray:
        gain = np.broadcast_to(np.asarray(amount, dtype=np.float64), (3,))
        return np.asarray(base, dtype=np.float64) + field[..., None] * gain

    tiles: dict[str, np.ndarray] = {}
    row = (y // 16).astype(int)
    mortar = ((y % 16) < 2) | (((x + (row % 2) * 16) % 32) < 2)
    tiles["brick"] = np.where(mortar[..., None], 175.0, paint((140, 66, 50), _noise(rng, size, 8, 60), 9))
    waves = np.sin(2 * np.pi * (y * 12 / size) + 1.3 * _noise(rng, size, 1, 5))
    tiles["sea"] = paint((25, 105, 160), waves, (14, 22, 26))
    tiles["sand"] = paint((205, 175, 120), _noise(rng, size, 20, 120), 11)
    tiles["grass"] = paint((70, 125, 45), _noise(rng, size, 10, 110, (0.4, 1.0)), (14, 22, 10))
    tiles["snow"] = paint((226, 232, 240), _noise(rng, size, 2, 12), 7)
    grain = np.sin(2 * np.pi * x * 10 / size + 1.6 * _noise(rng, size, 1, 6, (3.0, 1.0)))
    tiles["wood"] = paint((125, 82, 42), grain, (20, 15, 9))
    tiles["stone"] = paint((128, 128, 126), _noise(rng, size, 4, 24), 18)
    cracks = np.abs(_noise(rng, size, 2, 10)) < 0.16
    tiles["lava"] = np.where(
        cracks[..., None], np.array([255.0, 120, 10]), paint((48, 22, 20), _noise(rng, size, 6, 30), 8)
    )
    stars = rng.random((size, size)) > 0.994
    stars = stars | np.roll(stars, 1, 0) | np.roll(stars, 1, 1)
    tiles["night"] = np.where(stars[..., None], 235.0, paint((14, 16, 48), _noise(rng, size, 1, 6), 5))
    tiles["cloud"] = paint((150, 190, 230), np.clip(_noise(rng, size, 2, 9), -1, 2), (30, 22, 10))
    check = (((x // 16) + (y // 16)) % 2)[..., None]
    tiles["tiles"] = check * np.array([40.0, 150, 145]) + (1 - check) * np.array([215.0, 225, 215])
    stripes = np.sign(np.sin(2 * np.pi * (x + y) * 8 / size))
    tiles["carpet"] = paint((110, 50, 80), stripes, (22, 8, 30)) + paint(
        (0, 0, 0), _noise(rng, size, 30, 120), 5
    )
    return {name: np.clip(tile, 0, 255).astype(np.float32) for name, tile in tiles.items()}


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the shape's edge in units of its half extent; negative inside."""
    au, av = np.abs(u), np.abs(v)
    if shape == "circle":
        return np.hypot(u, v) - 0.95
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.70) - 0.28
    if shape == "square":
        return np.maximum(au, av) - 0.82
    if shape == "triangle":
        return np.maximum(v - 0.8, (au * 0.87 - v * 0.5) - 0.42)
    if shape == "cross":
        return np.minimum(np.maximum(au - 0.30, av - 0.95), np.maximum(av - 0.30, au - 0.95))
    if shape == "bar":
        return np.maximum(au - 0.98, av - 0.36)
    raise ValueError(f"shape must be one of {SHAPES}, but got {shape!r}")


def _render_scene(video: Video, shot: int, frame: int) -> np.ndarray:
    scene = video.scenes[video.shots[shot].scene]
    oy = int(scene.offset[0] + scene.drift[0] * frame) % 256
    ox = int(scene.offset[1] + scene.drift[1] * frame) % 256
    tile = textures()[scene.background]
    image = np.take(np.take(tile, np.arange(oy, oy + SIZE) % 256, 0), np.arange(ox, ox + SIZE) % 256, 1)
    at = video.progress(frame, shot)
    for thing in scene.things:
        (r0, c0), (r1, c1) = divmod(thing.cell, GRID), divmod(thing.end_cell, GRID)
        cy = (r0 + (r1 - r0) * at + 0.5) * CELL + thing.jitter[0] + scene.sway[0] * np.sin(frame / 9)
        cx = (c0 + (c1 - c0) * at + 0.5) * CELL + thing.jitter[1] + scene.sway[1] * np.cos(frame / 11)
        extent = LARGE if thing.large else SMALL
        top, left = max(int(cy - extent - 3), 0), max(int(cx - extent - 3), 0)
        bottom, right = min(int(cy + extent + 4), SIZE), min(int(cx + extent + 4), SIZE)
        v, u = np.mgrid[top:bottom, left:right].astype(np.float32)
        distance = _distance(thing.shape, (u - cx) / extent, (v - cy) / extent) * extent  # pixels
        outline = np.clip(2.0 - distance, 0, 1)[..., None]
        inside = np.clip(0.5 - distance, 0, 1)[..., None]
        patch = image[top:bottom, left:right]
        patch = patch * (1 - outline) + 12.0 * outline
        image[top:bottom, left:right] = (
            patch * (1 - inside) + np.asarray(_RGB[thing.color], np.float32) * inside
        )
    return image


def render(video: Video, frame: int) -> np.ndarray:
    """One frame, uint8 RGB. Shape: (SIZE, SIZE, 3)."""
    shown, fading, weight = video.mix_at(frame)
    image = _render_scene(video, shown, frame)
    if weight > 0:
        image = image * (1 - weight) + _render_scene(video, fading, frame) * weight
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
