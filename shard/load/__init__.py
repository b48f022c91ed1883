"""One rank's weights: its slices of the checkpoint, padded and laid out."""
