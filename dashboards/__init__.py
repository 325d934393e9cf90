"""Figures and reports, drawn from recorded results. Never runs a trial."""
