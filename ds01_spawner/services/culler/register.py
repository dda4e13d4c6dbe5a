"""What JupyterHub must know of the culler: a service and its role."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from ds01_spawner.services.culler.settings import SCOPES, VARIABLE, Settings

NAME: Final = "ds01-culler"

_PASSED_ON: Final = ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")


def service(settings: Settings) -> dict[str, Any]:
    """Return the entry for ``JupyterHub.services``; the hub starts the culler, and starts it again when it ends."""
    engine = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        "name": NAME,
        "command": [sys.executable, "-m", "ds01_spawner.services.culler"],
        "environment": {VARIABLE: settings.to_json(), **engine},
    }


def role() -> dict[str, Any]:
    """Return the entry for ``JupyterHub.load_roles``: exactly the scopes that the culler needs."""
    return {"name": NAME, "services": [NAME], "scopes": list(SCOPES)}
