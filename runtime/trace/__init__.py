"""What was seen at the sites of a forward pass: recorded, kept in a folder, compared."""
