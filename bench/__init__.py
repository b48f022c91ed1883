"""Measurements. Run from the repository root: python -m bench.NAME."""
