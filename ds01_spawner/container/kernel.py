"""Starts a notebook kernel in the image's own Python, with the image's packages before the runtime's.

Run by the image's interpreter with its usual settings, so that a notebook sees exactly what a script sees.  Only what
``ipykernel`` itself needs is added, at the very end of ``sys.path``.  Where the image has such old packages that the
runtime's ``ipykernel`` cannot be imported behind them, the kernel starts again with the runtime's few packages first.

Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = os.path.join(os.path.dirname(HERE), "kernel")
RUNTIME_FIRST = "--ds01-runtime-first"


def set_path(*, runtime_first: bool) -> None:
    """Make the runtime's kernel packages importable, and this folder not."""
    rest = [entry for entry in sys.path if entry not in (HERE, PACKAGES)]
    if runtime_first:
        library = os.path.dirname(os.__file__)
        # The image's PYTHONPATH stands before the standard library and may be what stops the kernel: so after it.
        standard = [entry for entry in rest if entry in (library, os.path.join(library, "lib-dynload"))]
        sys.path[:] = [*standard, PACKAGES, *(entry for entry in rest if entry not in standard)]
    else:
        sys.path[:] = [*rest, PACKAGES]


def import_kernel() -> Any:
    """Import everything that a kernel needs to start; any exception means that it cannot.

    Old packages fail in many ways, not only with ImportError: a missing attribute, a changed signature.
    """
    from ipykernel import ipkernel, kernelapp, zmqshell  # noqa: F401 - each is imported late, by name, when it is used

    return kernelapp


def main() -> None:
    """Start the kernel that the arguments describe."""
    runtime_first = RUNTIME_FIRST in sys.argv
    if runtime_first:
        sys.argv.remove(RUNTIME_FIRST)
    set_path(runtime_first=runtime_first)
    try:
        kernelapp = import_kernel()
    except (Exception, SystemExit):
        if runtime_first:
            raise
        traceback.print_exc()
        sys.stderr.write("ds01: this image's packages cannot start a kernel; starting with the site's before them\n")
        sys.stderr.flush()
        # A second process image, because a half-imported compiled module cannot be taken back.
        again = [sys.executable, *_interpreter_options(), __file__, RUNTIME_FIRST, *sys.argv[1:]]
        os.execv(sys.executable, again)
    kernelapp.launch_new_instance()


def _interpreter_options() -> list[str]:
    """Return the options that this interpreter was started with and that matter to a debugger."""
    return ["-Xfrozen_modules=off"] if sys._xoptions.get("frozen_modules") == "off" else []


if __name__ == "__main__":
    main()
