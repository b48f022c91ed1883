"""The `isobit` command: one file per subcommand."""
