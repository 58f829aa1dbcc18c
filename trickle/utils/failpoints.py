"""Fail points: places where a test can kill the process, to see what is left of it.

Off unless the environment names one: ``_TRICKLE_FAIL_POINT=name`` or ``name:n``, to die at the n-th
time that it is reached. The process kills itself as ``kill -9`` would: nothing is cleaned up.
"""

from __future__ import annotations

import os
import signal

__all__ = ["VARIABLE", "fail_point"]

VARIABLE = "_TRICKLE_FAIL_POINT"


class _Armed:
    def __init__(self, setting: str) -> None:
        self.name, _, count = setting.partition(":")
        self.left = int(count) if count else 1


_setting = os.environ.get(VARIABLE)
_armed = _Armed(_setting) if _setting else None


def fail_point(name: str) -> None:
    """Die here, if this is the fail point that the environment names."""
    if _armed is not None and _armed.name == name:
        _armed.left -= 1
        if _armed.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
