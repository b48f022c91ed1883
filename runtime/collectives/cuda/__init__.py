"""Sums and gathers of ranks on CUDA devices, by the same tree as on CPUs."""
