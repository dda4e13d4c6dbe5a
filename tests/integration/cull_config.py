"""The hub of the culler's tests: the usual one with short limits, and activity reported as often as it can be."""

import json
import os
from pathlib import Path

c = get_config()  # noqa: F821 - JupyterHub defines it
limits = Path("limits.yaml").absolute()
limits.write_text(
    """
    defaults:
      idle_timeout_h: 0.0166667  # one minute
      max_runtime_h: 2
      policies: {grace_period_m: 0}
    groups:
      short:
        members: [runner]
        max_runtime_h: 0.025  # a minute and a half
    """
)
os.environ["DS01_TEST_LIMITS"] = str(limits)
os.environ["DS01_TEST_CULLER"] = json.dumps({"pass_seconds": 5})
load_subconfig(str(Path(__file__).with_name("hub_config.py")))  # noqa: F821 - JupyterHub defines it

c.JupyterHub.default_url = "/hub/home"  # the portal is not what is tested here

# For the comparison: another culler only learns from the hub, and shall learn at once.
c.JupyterHub.last_activity_interval = 5
c.Spawner.environment = {"JUPYTERHUB_ACTIVITY_INTERVAL": "5"}
other = {"name": "other", "api_token": os.environ["DS01_TEST_OTHER_TOKEN"]}
role = {
    "name": "other",
    "services": ["other"],
    "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
}
c.JupyterHub.services = [*c.JupyterHub.services, other]
c.JupyterHub.load_roles = [*c.JupyterHub.load_roles, role]
