"""What a configuration and a study cost, and what is asked of the model: exact, without loading a model."""
