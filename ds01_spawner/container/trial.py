"""Tries the runtime inside an image: whether a kernel and the image's own JupyterLab start with the image's packages.

Run once for an image whose packages could disagree with the runtime's, without network, before its first launch.
Standard library only, Python 3.9 or newer.  Whoever reads the answer treats it as hostile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

MARKER = "ds01-trial:"
HERE = os.path.dirname(os.path.abspath(__file__))
SECONDS = 40
KERNEL = """
import sys
sys.path.insert(0, {here!r})
import kernel
kernel.set_path(runtime_first=False)
kernel.import_kernel()
"""


cut_short: list[list[str]] = []


def attempt(command: list[str]) -> tuple[bool, str]:
    """Return whether a command succeeds, and the last line that it said when not."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        cut_short.append(command)
        return False, "it took more than %d seconds" % SECONDS
    said = done.stdout.decode("utf-8", "replace").strip().splitlines()
    return done.returncode == 0, "" if done.returncode == 0 or not said else said[-1][:300]


def main() -> None:
    """Print the result."""
    kernel, kernel_error = attempt([sys.executable, "-c", KERNEL.format(here=HERE)])
    server, server_error = False, ""
    if "--server" in sys.argv:
        launch = os.path.join(HERE, "launch.py")
        server, server_error = attempt([sys.executable, "-I", "-S", launch, "--plan=image-first", "--check"])
    answer = {
        "schema": 1,
        "kernel_image_first": kernel,
        "kernel_error": kernel_error,
        "server_image_first": server,
        "server_error": server_error,
        "cut_short": bool(cut_short),
    }
    sys.stdout.write("\n" + MARKER + json.dumps(answer, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
