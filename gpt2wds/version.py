"""The version, where modules find it without the package that imports them."""

__version__ = "0.1.0"
