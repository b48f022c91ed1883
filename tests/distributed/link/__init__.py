"""Tests of messages between driver and ranks."""
