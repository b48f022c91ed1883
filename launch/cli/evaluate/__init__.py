"""`isobit evaluate`."""
