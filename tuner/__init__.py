"""Tunes AdaTP on a team's own validation videos and questions."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    # Looking the version up costs 20 ms of imports, which a `--help` should not pay.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("adatp-tuner")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"
