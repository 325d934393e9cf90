"""What each knob does: curves, indices, maps and the sentences that say it."""
