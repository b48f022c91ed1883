"""The driver of one model over its ranks."""
