"""The commands' interface and the bits of answers, as recorded: what moves and renames keep."""
