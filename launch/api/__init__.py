"""isobit in Python, under the names people know from vLLM."""
