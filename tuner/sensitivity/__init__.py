"""What each knob does: curves, indices, maps, and sentences about them."""
