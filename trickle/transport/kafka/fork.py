"""A forked child inherits clients whose threads do not exist in it.

Destroying such a client aborts the child, and using one waits for ever. So in the child each
client is made immortal, and every call of it says what is wrong.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol

from trickle.exceptions import UsageError

__all__ = ["Forkable", "forked_error", "watch_forks"]


class Forkable(Protocol):
    """Something that owns client objects."""

    def in_forked_child(self) -> list[object]:
        """Refuse every call from now on; return the objects that may not be destroyed."""
        ...


_live: weakref.WeakSet[Forkable] = weakref.WeakSet()


def watch_forks(owner: Forkable) -> None:
    """Tell this owner when it finds itself in a forked child."""
    _live.add(owner)


def forked_error() -> UsageError:
    """Return the error for a call in a forked child."""
    return UsageError(
        "this Kafka client belongs to the process that forked this one, and cannot work here: "
        "start processes by spawn (multiprocessing.set_start_method('spawn')), "
        "and open the broker in each of them"
    )


def _in_child() -> None:
    for owner in list(_live):
        for inherited in owner.in_forked_child():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


os.register_at_fork(after_in_child=_in_child)
