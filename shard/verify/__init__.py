"""What ranks loaded against the file."""
