"""A JupyterHub spawner that gives every project its own image, folder and GPU on a shared server."""

from typing import Any

from ds01_spawner._version import __version__

__all__ = ["DS01Spawner", "__version__", "configure"]


def __getattr__(name: str) -> Any:
    # The services and the scripts beside the hub need neither JupyterHub nor the spawner, which take a second to load.
    if name == "configure":
        from ds01_spawner.config import configure  # noqa: PLC0415

        return configure
    if name == "DS01Spawner":
        from ds01_spawner.spawner import DS01Spawner  # noqa: PLC0415

        return DS01Spawner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
