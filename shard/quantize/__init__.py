"""Quantization algorithms: pure functions on a weight, and the writer of their result."""
