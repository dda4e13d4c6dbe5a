"""Ties a service to the hub that started it."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Let the kernel send this process SIGTERM when the process that started it ends, even if that was killed.

    A hub that is killed cannot stop its services.  Left alone they would work on beside those of the next hub, with a
    token that is no longer worth anything, and write the same files.
    """
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError("this kernel cannot tie a process to its parent (PR_SET_PDEATHSIG)")
