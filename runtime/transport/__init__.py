"""Messages between the driver and its ranks, over a Unix socket or encrypted TCP."""
