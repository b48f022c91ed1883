"""How good a model is on text, and how far from its reference."""
