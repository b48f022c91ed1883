"""`isobit quantize`."""
