"""The rate table: rows, where they are kept, and the sheet of operations beside it."""
