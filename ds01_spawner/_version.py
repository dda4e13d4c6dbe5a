"""The version, in one place; the hub logs it at start."""

__version__ = "0.1.0"
