"""Why is the output wrong? Checks from the cheapest to the dearest, and one verdict over them."""
