"""The command line: what `spandial` understands, asks the agent, and prints."""
