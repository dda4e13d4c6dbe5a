"""The demo's hub: two people without accounts on this host, any name of theirs with one password."""

import os
from pathlib import Path

from ds01_spawner import configure

c = get_config()  # noqa: F821 - JupyterHub defines it

state = Path(os.environ["DS01_DEMO_STATE"])

c.JupyterHub.bind_url = "http://127.0.0.1:8000"
c.JupyterHub.db_url = f"sqlite:///{state / 'hub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(state / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(state / "proxy.pid")
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = os.environ["DS01_DEMO_PASSWORD"]
c.Authenticator.allowed_users = {"alice", "bob"}
c.Authenticator.admin_users = {"bob"}

simulated = int(os.environ["DS01_DEMO_SIMULATED"])
configure(
    c,
    hub="ds01-demo",
    state_folder=state,
    people_folder=state / "people",
    default_image="ds01/python:13",
    network="ds01-demo",
    simulated_gpus=simulated,
)
