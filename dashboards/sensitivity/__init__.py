"""A sensitivity study as figures."""
