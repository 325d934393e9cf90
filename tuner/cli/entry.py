"""The console script. It imports next to nothing: an interrupt in the half second in which the commands are
imported ends it as quietly as a later one.
"""

from __future__ import annotations

import sys

from tuner.cli import interrupts


def main() -> None:
    """Runs the command that the arguments name."""
    interrupts.end_at_once()
    from tuner.cli.main import main as run

    interrupts.unwind()
    try:
        run()
    except KeyboardInterrupt:  # a second one, while the first was told
        sys.exit(interrupts.exit_code(interrupts.INTERRUPTED))
    finally:
        interrupts.end_at_once()


if __name__ == "__main__":
    main()
