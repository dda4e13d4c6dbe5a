"""The hub of the browser tests: limits that can be reached, and an image with pip for projects of their own."""

import json
import os
from pathlib import Path

from ds01_spawner import configure

c = get_config()  # noqa: F821 - JupyterHub defines it

state = Path.cwd()
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = os.environ["DS01_TEST_PASSWORD"]
c.Authenticator.allow_all = True

limits = state / "limits.yaml"
limits.write_text(
    "defaults:\n"
    "  max_gpu_equivalents: 4\n"
    "  max_gpu_slots_per_container: 4\n"
    "  max_containers_per_user: 2\n"
    "  idle_timeout_h: 1\n"
    "  max_runtime_h: 24\n"
)

configure(
    c,
    hub=os.environ["DS01_TEST_HUB"],
    state_folder=state,
    people_folder=state / "people",
    runtime_folder=Path(os.environ["DS01_TEST_RUNTIME"]),
    default_image="ds01/python:13",
    trusted_images=("ds01/debian:13", "ds01/python:13"),
    network=os.environ["DS01_TEST_HUB"],
    simulated_gpus=4,
    limits_file=limits,
    culler=json.loads(os.environ.get("DS01_TEST_CULLER", "{}")),
)
