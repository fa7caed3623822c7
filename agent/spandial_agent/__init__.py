"""The node agent: rate table, targets, kernel capture, and their wiring."""
