"""The canonical form of a weight in memory, and how values get into it."""
