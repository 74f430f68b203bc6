"""The command lines: they read options and configuration, and call the library with plain arguments."""
