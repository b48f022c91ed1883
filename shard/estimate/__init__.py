"""What a plan costs before anything is loaded: memory, traffic, what fits."""
