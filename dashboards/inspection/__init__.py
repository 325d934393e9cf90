"""What pruning does to single videos: cards of changed answers, attention's biases."""
