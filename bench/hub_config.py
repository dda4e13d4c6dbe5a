"""The hubs that bench/launch.py compares: DockerSpawner as it comes, and this project's."""

import os
from pathlib import Path

c = get_config()  # noqa: F821 - JupyterHub defines it

state = Path.cwd()
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [{"name": "bench", "api_token": os.environ["BENCH_TOKEN"]}]
c.JupyterHub.load_roles = [
    {"name": "bench", "services": ["bench"], "scopes": ["admin:users", "admin:servers", "access:servers"]}
]

if os.environ["BENCH_ARM"] == "ours":
    from ds01_spawner import configure

    configure(
        c,
        hub="ds01-bench",
        state_folder=state,
        runtime_folder=Path(os.environ["BENCH_RUNTIME"]),
        people_folder=state / "people",
        default_image=os.environ["BENCH_IMAGE"],
        trusted_images=(os.environ["BENCH_IMAGE"],),
        network="ds01-bench",
        simulated_gpus=1,
    )
else:
    c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
    c.DockerSpawner.image = os.environ["BENCH_IMAGE"]
    c.DockerSpawner.pull_policy = "never"
    # As in every other arm, each launch makes a new container and each retire removes it.
    c.DockerSpawner.remove = True
    c.DockerSpawner.cmd = ["jupyterhub-singleuser"]
    c.DockerSpawner.network_name = "ds01-bench-stock"
    c.DockerSpawner.use_internal_ip = True
    c.JupyterHub.hub_ip = os.environ["BENCH_GATEWAY"]
