"""What a run is told: frozen settings, checked before anything starts."""
