"""What pruning does to single videos: cards with frames, and the biases of attention."""
