"""The history of a search, its comparison with other methods, and the health of the study."""
