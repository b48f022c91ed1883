"""A forward pass recorded once, and run for every step."""
