"""`isobit plan`."""
