"""The report of a study: one page that holds every figure."""
