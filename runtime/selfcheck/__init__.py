"""A rank's own linear layers and operations against what they should give, while it runs."""
