"""How much accuracy a configuration may lose: `--max-drop`, absolute or in per cent of the baseline."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Self

from tuner.errors import UserError

# Three points: what two to three hundred held-out videos typically show (docs/statistics.md).
DEFAULT_MAX_DROP = "0.03"


@dataclass(frozen=True)
class MaxDrop:
    """A margin: `value` is a fraction, of all questions or (relative) of the baseline's accuracy."""

    value: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `0.01` (one point of accuracy) or `1%` (of the baseline's accuracy).

        Errors: UserError for anything else, and for values outside [0, 1).
        """
        found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(%?)\s*", text)
        try:
            number = float(found.group(1)) if found else math.nan
        except ValueError:
            number = math.nan
        relative = bool(found and found.group(2))
        value = number / 100 if relative else number
        if not 0 <= value < 1:
            raise UserError(
                f"the largest drop is a number like 0.01 (one point of accuracy) or 1% (of the baseline's "
                f"accuracy), from 0 to below 1, but got {text!r}"
            )
        return cls(value, relative)

    def absolute(self, baseline: float) -> float:
        """The margin in accuracy, where the baseline has this accuracy."""
        return self.value * baseline if self.relative else self.value

    def __str__(self) -> str:
        return f"{100 * self.value:g}%" if self.relative else f"{self.value:g}"
