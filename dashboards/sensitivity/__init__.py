"""What each knob does: indices, curves, pairwise maps and curves by tag."""
