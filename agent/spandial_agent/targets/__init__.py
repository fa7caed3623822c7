"""Who obeys, in which row, by which rules."""
