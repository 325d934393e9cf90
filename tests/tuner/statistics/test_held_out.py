"""Held-out answers are read by the final test and by reports that recommend nothing, and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[3]

READERS = {
    "tuner/evaluation": "measures them, and hands them to the final test (`SearchLoop.choice`)",
    "tuner/reporting": "says what they came to",
    "tuner/export": "writes what they came to",
    "tuner/records": "stores them",
    "tuner/study": "says which videos they are of",
    "tuner/runs/run.py": "says what so many can show; looks at the chosen configuration for pictures",
    "tuner/runs/compare.py": "methods side by side: no configuration is chosen",
    "tuner/runs/sensitivity.py": "how far the chosen configuration may drift; recommends on tune videos",
    "tuner/runs/verify.py": "asks their questions again with an exported file: no configuration is chosen",
    "tuner/planning/planner.py": "counts the FLOPs of its questions, which no answer is needed for",
    "tuner/planning/study_cost.py": "counts how many answers were asked for",
    "tuner/sensitivity/sentences.py": "says on which split a curve was measured",
    "dashboards": "draws what reports say",
}


def asks_for_held_out(source: str) -> bool:
    """Whether code names the split, as whoever wants its answers has to."""
    return any(
        isinstance(node, ast.Constant) and node.value == "held_out" for node in ast.walk(ast.parse(source))
    )


def test_nothing_that_chooses_or_learns_reads_the_held_out_split() -> None:
    """Samplers, pruner, search space, statistics and what `sensitivity` recommends are not among READERS."""
    found = [
        str(path.relative_to(ROOT))
        for folder in ("tuner", "dashboards")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if asks_for_held_out(path.read_text())
    ]
    assert len(found) > 5
    assert [text for text in found if not text.startswith(tuple(READERS))] == []


def test_a_sampler_that_reads_it_would_be_found() -> None:
    assert asks_for_held_out('answers = results.of(configuration, "held_out")')
    assert not asks_for_held_out('"""The held_out split."""\nanswers = results.of(configuration, "tune")')
