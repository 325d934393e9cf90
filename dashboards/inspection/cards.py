"""Regressions and gains: one card per question, with the frames and the tokens kept at each depth.

The page holds each strip of frames once, as a CSS variable; the rows of a card show it and fade what was
dropped. No scripts.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import count

import numpy as np
from numpy.typing import NDArray

from dashboards.picture.picture import Picture
from pipeline.trace import Grid, Segment
from tuner.evaluation.looking import FRAMES_PER_STRIP, Film
from tuner.reporting.inspection import Card, Inspection, Kind

# Cards of each kind that are shown at once; the others are folded.
OPEN = 3

_TITLES: dict[Kind, str] = {"regression": "Regressions", "gain": "Gains"}
_MEANINGS: dict[Kind, str] = {
    "regression": "right without pruning, wrong with it",
    "gain": "wrong without pruning, right with it",
}


@dataclass(frozen=True)
class CardRow:
    """One card as a row. Margins are natural logarithms; shares are fractions of the visual tokens."""

    kind: Kind
    question: str
    video: str
    text: str
    answer: str
    baseline_text: str
    pruned_text: str
    baseline_margin: float | None
    pruned_margin: float | None
    # As "key: value", joined by ", ".
    tags: str
    frames: int
    segments: int
    boosted_segments: int
    boosted_frames: int
    # Kept after the last pruning: of all tokens, of those in boosted segments, of the others; None: no such.
    kept_share: float
    kept_share_boosted: float | None
    kept_share_other: float | None


def card_rows(inspection: Inspection) -> tuple[CardRow, ...]:
    """The table: regressions, then gains; those where the baseline was most certain first."""
    return tuple(_row(card, inspection) for kind in _TITLES for card in inspection.shown(kind))


def _row(card: Card, inspection: Inspection) -> CardRow:
    left = _left(card, inspection, len(card.tokens) - 1)  # (frames, cells)
    boosted = np.zeros(inspection.frames, dtype=bool)
    for item in card.segments:
        boosted[item.first : item.last + 1] = item.boosted
    return CardRow(
        kind=card.kind,
        question=card.question,
        video=card.video,
        text=card.text,
        answer=card.answer,
        baseline_text=card.baseline_text,
        pruned_text=card.pruned_text,
        baseline_margin=card.baseline_margin,
        pruned_margin=card.pruned_margin,
        tags=", ".join(f"{key}: {value}" for key, value in sorted(card.tags.items())),
        frames=inspection.frames,
        segments=len(card.segments),
        boosted_segments=sum(segment.boosted for segment in card.segments),
        boosted_frames=int(boosted.sum()),
        kept_share=float(left.mean()),
        kept_share_boosted=float(left[boosted].mean()) if boosted.any() else None,
        kept_share_other=float(left[~boosted].mean()) if not boosted.all() else None,
    )


def _left(card: Card, inspection: Inspection, stage: int) -> NDArray[np.bool_]:
    """(frames, cells) which tokens are kept after a pruning stage; -1: before the first, all of them."""
    left = np.ones(inspection.frames * inspection.cells, dtype=bool)
    if stage >= 0:
        left[:] = False
        left[card.tokens[stage]] = True
    return left.reshape(inspection.frames, inspection.cells)


def cards_picture(inspection: Inspection) -> Picture:
    """The cards as an HTML fragment; with its frames a card takes some ten kilobytes."""
    return Picture(
        name="cards",
        title="Regressions and gains, question by question",
        description=_description(inspection),
        table=card_rows(inspection),
        body=f'<div class="cards">\n{"".join(_body(inspection))}</div>',
        css=_CSS,
    )


def _description(inspection: Inspection) -> str:
    right = " that the unpruned model answers right" if inspection.labelled else ""
    text = (
        f"Of {inspection.questions} held-out questions, pruning loses {inspection.regressions}{right} and "
        f"gains {inspection.gains}, at {100 * inspection.flops_ratio:.0f} % of the prefill FLOPs."
    )
    if any(inspection.left_out(kind) for kind in _TITLES):
        lost, gained = (len(inspection.shown(kind)) for kind in _TITLES)
        text += (
            f" Shown are {lost} of the losses and {gained} of the gains, those where the unpruned model was "
            "most certain first."
        )
    if inspection.unreadable:
        text += f" Left out, because their videos can no longer be read: {', '.join(inspection.unreadable)}."
    return text


def _body(inspection: Inspection) -> Iterator[str]:
    yield _how_to_read(inspection)
    numbers = count()
    for kind, title in _TITLES.items():
        cards = inspection.shown(kind)
        total = inspection.regressions if kind == "regression" else inspection.gains
        yield f"<section>\n<h3>{title}: {total} ({_MEANINGS[kind]})</h3>\n"
        if not cards:
            yield "<p>None to show.</p>\n"
        for card in cards[:OPEN]:
            yield _card(card, inspection, next(numbers))
        if cards[OPEN:]:
            yield f"<details>\n<summary>{len(cards[OPEN:])} more {title.lower()}</summary>\n"
            for card in cards[OPEN:]:
                yield _card(card, inspection, next(numbers))
            yield "</details>\n"
        if inspection.left_out(kind):
            yield f"<p>{inspection.left_out(kind)} more {title.lower()} are not shown.</p>\n"
        yield "</section>\n"


def _how_to_read(inspection: Inspection) -> str:
    grid = Grid.of(inspection.cells)
    text = (
        "Each row of frames shows the tokens kept at one depth of the model; dropped cells are faded. "
        f"A frame has {grid.rows} x {grid.columns} cells"
        + (", and a newline token after each row, which is not drawn" if grid.newlines else "")
        + ". "
    )
    if any(card.segments for card in inspection.cards):
        text += (
            "The bar below shows the segments and their relevance to the question; ▲ marks a boosted "
            "segment, which keeps more tokens. "
        )
    return (
        f'<p class="key">{text}✓ marks the right answer, ◀ the answer of a model. The margin is the '
        "log-probability of the right answer minus that of the best other option: below 0 the answer is "
        "wrong.</p>\n"
    )


def _card(card: Card, inspection: Inspection, place: int) -> str:
    """place: the card's row in `card_rows`, by which other parts of a page link to it."""
    tags = "".join(f" · {escape(key)}: {escape(value)}" for key, value in sorted(card.tags.items()))
    film = inspection.films[card.video]
    strips = "".join(
        _strip(card, inspection, film, number * FRAMES_PER_STRIP, data)
        for number, data in enumerate(film.strips)
    )
    return (
        f'<article id="cards-{place}" tabindex="-1">\n<div class="asked">\n<div>\n'
        f"<h4>{escape(card.text)}</h4>\n"
        f'<p class="about">video {escape(card.video)} · question {escape(card.question)}{tags}</p>\n'
        f"{_margins(card)}</div>\n{_answers(card)}</div>\n"
        f'<div class="film" tabindex="0" role="group" aria-label="Frames of {escape(card.video)}">\n'
        f"{strips}</div>\n</article>\n"
    )


def _margins(card: Card) -> str:
    if card.baseline_margin is None or card.pruned_margin is None:
        return ""
    return (
        f'<p class="about">margin of the right answer: unpruned {_signed(card.baseline_margin)}, '
        f"pruned {_signed(card.pruned_margin)}</p>\n"
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _answers(card: Card) -> str:
    """The options with the probabilities of both models, or both free answers."""
    if not card.options:
        rows = [("right", card.answer), ("unpruned", card.baseline_text), ("pruned", card.pruned_text)]
        cells = "".join(
            f'<tr><th scope="row">{name}</th><td>{escape(text)}</td></tr>\n' for name, text in rows
        )
        return f"<table>\n{cells}</table>\n"
    rows_ = []
    for index, option in enumerate(card.options):
        right = ' <span class="right">✓ <span class="heard">right</span></span>'
        name = escape(option) + (right if option == card.answer else "")
        shown = "".join(
            f"<td>{_probability(probabilities, index, option == said)}</td>"
            for probabilities, said in (
                (card.baseline_probabilities, card.baseline_text),
                (card.pruned_probabilities, card.pruned_text),
            )
        )
        rows_.append(f'<tr><th scope="row">{name}</th>{shown}</tr>\n')
    head = '<tr><th scope="col">option</th><th scope="col">unpruned</th><th scope="col">pruned</th></tr>\n'
    return f"<table>\n{head}{''.join(rows_)}</table>\n"


def _probability(probabilities: tuple[float, ...], index: int, said: bool) -> str:
    text = f"{100 * probabilities[index]:.0f} %" if probabilities else ""
    return f'<b>{text} ◀<span class="heard"> its answer</span></b>' if said else text


def _strip(card: Card, inspection: Inspection, film: Film, first: int, jpeg: bytes) -> str:
    """Up to `FRAMES_PER_STRIP` frames from frame `first`: as sampled, and at each depth."""
    count = min(FRAMES_PER_STRIP, inspection.frames - first)
    last = first + count - 1
    where = f"frames {first + 1} to {last + 1}"
    image = base64.b64encode(jpeg).decode()
    rows = [_row_of_frames("as sampled", f"{where}, as sampled", None, card, inspection, first, count)]
    for stage, layer in enumerate(card.layers):
        left = _left(card, inspection, stage)
        label = f"layer {layer}: {100 * left.mean():.0f} % kept"
        alt = f"{where}, {left[first : last + 1].sum()} tokens kept before layer {layer}"
        for item in _within(card.segments, first, last):
            kept = left[max(item.first, first) : min(item.last, last) + 1]
            alt += f"; {_frames(item)}: {kept.sum()} of {kept.size}"
        rows.append(_row_of_frames(label, alt, left, card, inspection, first, count))
    return (
        f'<div class="strip" style="--strip: url(data:image/jpeg;base64,{image}); --frames: {count}; '
        f'--shape: {count * film.width} / {film.height}">\n'
        f"{''.join(rows)}{_segments(card, film, first, last)}</div>\n"
    )


def _row_of_frames(
    label: str,
    alt: str,
    left: NDArray[np.bool_] | None,
    card: Card,
    inspection: Inspection,
    first: int,
    count: int,
) -> str:
    grid = Grid.of(inspection.cells)
    width = count * grid.columns
    drawn = ""
    if left is not None:
        picture = grid.picture(left[first : first + count])  # (frames, rows, columns)
        dropped = ~picture.transpose(1, 0, 2).reshape(grid.rows, width)
        drawn += f'<path class="dropped" d="{_runs(dropped)}"/>'
    begins = {segment.first for segment in card.segments}
    borders = {
        "frame": [frame for frame in range(1, count) if first + frame not in begins],
        "cut": [frame for frame in range(1, count) if first + frame in begins],
    }
    for name, frames in borders.items():
        lines = "".join(f"M{frame * grid.columns} 0v{grid.rows}" for frame in frames)
        drawn += f'<path class="{name}" d="{lines}"/>' if lines else ""
    return (
        f'<span class="depth">{label}</span>'
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width} {grid.rows}" '
        f'preserveAspectRatio="none">{drawn}</svg>\n'
    )


def _runs(cells: NDArray[np.bool_]) -> str:
    """Horizontal lines, one cell high, over the true cells of `cells` (rows, width)."""
    path = []
    for number, row in enumerate(cells):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
        path += [
            f"M{begin} {number}.5h{end - begin}"
            for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        ]
    return "".join(path)


def _within(segments: Iterable[Segment], first: int, last: int) -> list[Segment]:
    return [segment for segment in segments if segment.first <= last and segment.last >= first]


def _frames(segment: Segment) -> str:
    if segment.first == segment.last:
        return f"frame {segment.first + 1}"
    return f"frames {segment.first + 1} to {segment.last + 1}"


def _segments(card: Card, film: Film, first: int, last: int) -> str:
    """The segments below a strip: relevance, whether boosted, start time."""
    if not card.segments:
        return ""
    items = []
    for item in _within(card.segments, first, last):
        begin, end = max(item.first, first), min(item.last, last)
        height = 100 * min(1.0, max(0.0, item.relevance or 0.0))
        mark = '▲<span class="heard"> boosted </span>' if item.boosted else ""
        said = "none" if item.relevance is None else f"{item.relevance:.2f}"
        boosted = "boosted" if item.boosted else "other"
        full = f"{_frames(item)}, {film.times[item.first]:.1f} to {film.times[item.last]:.1f} s"
        items.append(
            f'<li class="{boosted}" title="{full}" '
            f'style="grid-column: {begin - first + 1} / {end - first + 2}; --height: {height:.0f}%">'
            f'<span class="relevance">{mark}{said}</span>'
            f'<span class="time">{film.times[begin]:.3g} s</span></li>\n'
        )
    return f'<span class="depth">relevance</span><ol>\n{"".join(items)}</ol>\n'


# Colours are the page's. Backgrounds hold the frames, so they are printed.
_CSS = f"""\
.cards {{ color: var(--ink); }}
.cards .key {{ max-width: 75ch; line-height: 1.45; }}
.cards article {{ margin: 0 0 1rem; padding: .8rem 1rem; border: 1px solid var(--line);
  border-radius: .4rem; background: var(--ground); break-inside: avoid; }}
.cards .asked {{ display: flex; flex-wrap: wrap; gap: .4rem 2rem; justify-content: space-between; }}
.cards h4 {{ margin: 0 0 .3rem; font-size: 1.05rem; }}
.cards .about {{ margin: 0 0 .3rem; color: var(--muted); font-size: .85rem; }}
.cards table {{ border-collapse: collapse; font-size: .85rem; margin-bottom: .5rem; }}
.cards th, .cards td {{ padding: .1rem .7rem .1rem 0; text-align: left; font-weight: normal; }}
.cards tr:first-child th[scope=col] {{ color: var(--muted); }}
.cards td b {{ white-space: nowrap; }}
.cards .right {{ font-weight: bold; }}
.cards .film {{ position: relative; overflow-x: auto; }}
.cards .strip {{ display: grid; grid-template-columns: 8.5rem 1fr; gap: 3px .5rem; min-width: 52rem;
  margin-bottom: .4rem; }}
.cards .depth {{ align-self: center; color: var(--muted); font-size: .8rem; line-height: 1.2; }}
.cards svg, .cards ol {{ width: calc(100% * var(--frames) / {FRAMES_PER_STRIP}); }}
.cards svg {{ display: block; aspect-ratio: var(--shape); background: var(--strip) 0 0 / 100% 100%;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
.cards path {{ fill: none; stroke: var(--ground); }}
.cards .dropped {{ stroke-opacity: .86; shape-rendering: crispEdges; }}
.cards .frame {{ stroke-width: 1px; vector-effect: non-scaling-stroke; }}
.cards .cut {{ stroke-width: 5px; vector-effect: non-scaling-stroke; }}
.cards ol {{ display: grid; grid-template-columns: repeat(var(--frames), 1fr); margin: 0; padding: 0;
  list-style: none; font-size: .72rem; line-height: 1.3; }}
.cards li {{ overflow: hidden; white-space: nowrap; margin: 0 2px; }}
.cards .relevance {{ display: block; padding: 0 .2rem; border: 1px solid var(--line);
  background: linear-gradient(to top, color-mix(in srgb, var(--ink) 16%, transparent) var(--height),
  transparent 0); print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
.cards .boosted .relevance {{ border: 2px solid var(--ink); font-weight: bold; }}
.cards .time {{ color: var(--muted); }}
.cards .heard {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }}
.cards summary {{ cursor: pointer; margin-bottom: .8rem; }}
@media print {{
  .cards details::details-content {{ content-visibility: visible; }}
  .cards .film {{ overflow: visible; }}
  .cards .strip {{ min-width: 0; }}
  .cards ol {{ font-size: .55rem; }}
  .cards .relevance {{ padding: 0; }}
}}
"""
