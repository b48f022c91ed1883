"""Step time and memory on machines that nobody has tried: `python -m bench.scale`."""
