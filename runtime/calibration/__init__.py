"""Calibration: the model streams through its ranks layer by layer, and can go on after a kill."""
