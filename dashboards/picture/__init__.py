"""What a figure is, and how it becomes a page, a still or a table."""
