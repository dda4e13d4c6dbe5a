"""The hub of the browser tests with idle limits of a minute and a culler that looks every five seconds."""

import json
import os
from pathlib import Path

os.environ["DS01_TEST_CULLER"] = json.dumps({"pass_seconds": 5})
load_subconfig(str(Path(__file__).with_name("hub_config.py")))  # noqa: F821 - JupyterHub defines it
limits = Path.cwd() / "limits.yaml"
limits.write_text(
    "defaults:\n  idle_timeout_h: 0.025  # a minute and a half\n  max_runtime_h: 24\n  policies: {grace_period_m: 0}\n"
)
