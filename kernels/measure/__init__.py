"""Timing kernels beside what the machine can do and beside torch, all in one run."""
