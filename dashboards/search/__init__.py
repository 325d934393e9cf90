"""How a search went, how it compares with other methods, and whether its numbers can be trusted."""
