"""What every figure is made of, and how it becomes a page and files."""
