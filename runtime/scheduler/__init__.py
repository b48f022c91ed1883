"""Which rows of which requests make up the next step. Pure bookkeeping, no tensors."""
