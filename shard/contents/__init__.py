"""What a checkpoint has to hold, and what it holds instead."""
