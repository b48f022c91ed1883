"""What a step of a program is given: rows, buffers, the KV cache."""
