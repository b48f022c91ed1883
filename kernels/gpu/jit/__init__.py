"""Kernels in the language of Triton, which type checkers take for Python and should not."""
