"""The outside world: the command line, Ray placement, model folders and text."""
