"""A model's files on every host that holds ranks: compared, and fetched where they lack."""
