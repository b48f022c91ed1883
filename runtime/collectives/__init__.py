"""Sums and gathers over ranks, by the one fixed tree."""
