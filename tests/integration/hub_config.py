"""The hub of the integration tests: people without accounts on this host, simulated devices."""

import json
import os
from pathlib import Path

from ds01_spawner import configure

c = get_config()  # noqa: F821 - JupyterHub defines it

state = Path.cwd()
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = os.environ["DS01_TEST_PASSWORD"]
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"root-of-the-lab"}

c.Spawner.poll_interval = 2

# What a site may add to every container.
(state / "shared").mkdir(exist_ok=True)
c.DS01Spawner.read_only_volumes = {str(state / "shared"): "/data"}
c.DS01Spawner.extra_fields = {"course": {"label": "Course", "choices": ["none", "ml-1"]}}
c.DS01Spawner.environment = {"SITE_NAME": "the lab", "COURSE": lambda spawner: spawner.user_options["course"]}
c.DS01Spawner.extra_create_kwargs = {"labels": {"org.lab.room": "{username}", "ds01.managed": "false"}}
c.DS01Spawner.extra_host_config = {"ulimits": [{"Name": "nofile", "Soft": 2048, "Hard": 2048}]}

configure(
    c,
    hub=os.environ["DS01_TEST_HUB"],
    state_folder=state,
    people_folder=state / "people",
    runtime_folder=Path(os.environ["DS01_TEST_RUNTIME"]),
    default_image="ds01/debian:13",
    trusted_images=("ds01/debian:11", "ds01/debian:12", "ds01/debian:13"),
    network=os.environ["DS01_TEST_HUB"],
    simulated_gpus=4,
    limits_file=os.environ.get("DS01_TEST_LIMITS"),
    # Most tests are shorter than any idle time, and one process less matters on two cores.
    culler=json.loads(os.environ.get("DS01_TEST_CULLER", "null")),
)
