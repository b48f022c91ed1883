"""`isobit bench`."""
