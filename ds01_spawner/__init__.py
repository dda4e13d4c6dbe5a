"""A JupyterHub spawner that gives every project its own image, folder and GPU on a shared server."""

from ds01_spawner._version import __version__

__all__ = ["__version__"]
