"""The doctor's checks, one a file."""
