"""``ds01-runtime``: makes the notebook runtime ahead, so that no user waits for it and no launch needs a network."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds01_spawner.adapters.imageprobe import ImageProbe
from ds01_spawner.adapters.packages import UvPackages
from ds01_spawner.adapters.probecache import ProbeCache
from ds01_spawner.adapters.runtimefolder import RuntimeFolder
from ds01_spawner.core.imagefacts import SUPPORTED
from ds01_spawner.errors import DS01Error
from ds01_spawner.runtime import Runtime

DEFAULT_STATE = Path("/var/lib/ds01")


def open_runtime(
    folder: Path, state: Path, *, trusted_images: Sequence[str] = (), engine: dict[str, Any] | None = None
) -> Runtime:
    """Return the notebook runtime of a site with its real adapters.

    Args:
        folder: where the package sets live.
        state: folder of the hub's own files; what is known about images is kept there.
        trusted_images: local images of the site's own, see ``Runtime``.
        engine: arguments for ``docker.APIClient``; the environment decides when empty.
    """
    return Runtime(
        folder=RuntimeFolder(folder),
        packages=UvPackages(),
        probe=ImageProbe(engine),
        cache=ProbeCache(state / "images.json"),
        trusted_images=trusted_images,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Make the sets of the named Python versions and print where they are."""
    parser = argparse.ArgumentParser(prog="ds01-runtime", description=__doc__)
    parser.add_argument("version", nargs="+", choices=SUPPORTED, help="Python versions, such as 3.11 3.12")
    parser.add_argument(
        "--state", type=Path, default=DEFAULT_STATE, help="the hub's state folder; default: %(default)s"
    )
    parser.add_argument("--folder", type=Path, help="the runtime folder; default: runtime in the state folder")
    parser.add_argument(
        "--trusted-image",
        action="append",
        default=[],
        help="a local image of the site's own whose Python may compile its version's packages; may be repeated",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    folder = options.folder or options.state / "runtime"
    runtime = open_runtime(folder, options.state, trusted_images=options.trusted_image)
    return asyncio.run(_make(runtime, options.version))


async def _make(runtime: Runtime, versions: Sequence[str]) -> int:
    failed = 0
    for version in versions:
        started = time.monotonic()
        try:
            folder = await runtime.make_set(version, on_progress=lambda text: print(text, file=sys.stderr))
        except DS01Error as error:
            print(error, file=sys.stderr)
            failed = 1
        else:
            print(f"{version}  {folder}  ({time.monotonic() - started:.0f} s)")
    return failed


if __name__ == "__main__":
    sys.exit(main())
