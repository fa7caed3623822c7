"""Who is to be a target: processes that rules or their environments name, and those that register."""
