"""Tests of quantization as a command."""
