"""`isobit cluster`."""
