"""Tests with Ray."""
