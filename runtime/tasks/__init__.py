"""What one does with an engine: verify it, time it, record a trace."""
