"""The report: one page with the answer and all figures."""
