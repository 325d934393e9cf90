"""The three long commands as library calls: run, compare, sensitivity."""
