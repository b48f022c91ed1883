"""Every host of a Ray cluster looked at before anything is launched on it."""
