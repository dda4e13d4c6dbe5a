"""What JupyterHub must know of the portal: a service, its role, and that everybody may open it."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from ds01_spawner.services.portal.settings import PERSON_SCOPES, SCOPES, SERVICE, VARIABLE, Settings

_PASSED_ON = (
    "DOCKER_HOST",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "NO_PROXY",
)

ENTER = frozenset({f"access:services!service={SERVICE}"})
"""The scope that every user needs to open it."""


def service(settings: Settings) -> dict[str, Any]:
    """Return the entry for ``JupyterHub.services``; the hub starts the portal, and starts it again when it ends."""
    return {
        "name": SERVICE,
        "command": [sys.executable, "-m", "ds01_spawner.services.portal"],
        "url": f"http://127.0.0.1:{_free_port()}",
        "environment": {
            VARIABLE: settings.to_json(),
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        },
        "oauth_client_allowed_scopes": list(PERSON_SCOPES),
        # It is a page of the hub's own: asking people whether they trust it would teach them to click.
        "oauth_no_confirm": True,
    }


def role() -> dict[str, Any]:
    """Return the entry for ``JupyterHub.load_roles``: exactly the scopes that the portal itself needs."""
    return {"name": f"{SERVICE}-portal", "services": [SERVICE], "scopes": list(SCOPES)}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
