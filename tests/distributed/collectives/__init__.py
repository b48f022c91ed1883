"""Tests of sums over ranks."""
