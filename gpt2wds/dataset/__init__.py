"""A dataset directory: its format, reading it, and the order in which it is read."""
