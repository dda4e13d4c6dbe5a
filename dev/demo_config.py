"""The demo's hub: two people without accounts on this host, any name of theirs with one password."""

import os
from pathlib import Path

from ds01_spawner import configure

c = get_config()  # noqa: F821 - JupyterHub defines it

state = Path.cwd()
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = os.environ["DS01_DEMO_PASSWORD"]
c.Authenticator.allowed_users = {"alice", "bob"}
c.Authenticator.admin_users = {"bob"}

limits = state / "limits.yaml"
limits.write_text(
    f"""
    defaults:
      idle_timeout_h: {float(os.environ["DS01_DEMO_IDLE_MINUTES"]) / 60:.7f}
      policies: {{grace_period_m: 0}}
    """
)
simulated = int(os.environ["DS01_DEMO_SIMULATED"])
configure(
    c,
    hub="ds01-demo",
    state_folder=state,
    people_folder=state / "people",
    default_image="ds01/python:13",
    network="ds01-demo",
    simulated_gpus=simulated,
    limits_file=limits,
    # Short, so that whoever tries it can watch an idle project being warned and retired.
    culler={"pass_seconds": 5, "warn_seconds": [120, 60], "notice_seconds": 45},
)
