"""Runs the portal as a service of the hub: ``python -m ds01_spawner.services.portal``; the hub starts it like this."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from ds01_spawner.adapters.lifeline import end_with_parent
from ds01_spawner.errors import DS01Error
from ds01_spawner.services.portal.serve import serve
from ds01_spawner.services.portal.settings import VARIABLE, Settings, SettingsRefused

FAILED, MISUSED = 1, 2


def main() -> int:
    """Serve and return the exit code: 0 well, 1 not, 2 when the hub did not start it."""
    logging.basicConfig(level=logging.INFO, format="[%(levelname)1.1s %(asctime)s %(name)s] %(message)s")
    try:
        settings = Settings.from_json(os.environ[VARIABLE])
        end_with_parent()
        asyncio.run(serve(settings, dict(os.environ)))
    except KeyError as error:
        sys.stderr.write(f"{error} is not set. The hub starts this service; configure() registers it.\n")
        return MISUSED
    except (SettingsRefused, DS01Error) as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
