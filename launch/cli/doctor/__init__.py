"""`isobit doctor`."""
