"""Intervals, tests and margins over videos: what may be concluded from answers."""
