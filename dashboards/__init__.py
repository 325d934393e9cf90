"""Figures and the report, drawn from finished results. Never runs a trial."""
