"""What a model is and who owns which piece of it. Knows no process."""
