"""What a model is: its shape, read from config.json."""
