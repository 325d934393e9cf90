"""What a configuration costs and what it asks of the model: exact, from stored layouts, without a model."""
