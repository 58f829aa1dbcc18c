"""The C library's memory: what it is told so that a process that runs for weeks stays small.

Both are glibc's own and of no effect elsewhere.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import trio

from trickle.utils.bridge import open_bridge

__all__ = ["bound_arenas", "give_back"]

ARENAS_MAX = 2
PERIOD_S = 60.0
_M_ARENA_MAX = -8  # of glibc's malloc.h


def bound_arenas() -> None:
    """Let all threads share two of the C library's arenas.

    glibc gives each thread one of its own, up to eight for each core, and does not use for others
    what a thread left there when it ended. A Kafka client starts threads with each connection and
    each new client: memory grew with every broker that was lost and found again. Of no effect
    where ``MALLOC_ARENA_MAX`` says otherwise.
    """
    if not os.environ.get("MALLOC_ARENA_MAX"):
        with suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS_MAX)


async def give_back(period: float = PERIOD_S) -> None:
    """Give free memory back to the system, every so many seconds, until cancelled.

    By itself glibc gives back what lies free at the end of an arena. Recoveries and floods leave
    their peaks in front of something that stays, and each new one may find other gaps: without
    this a worker's memory grew by a third in half an hour of faults, and nothing was lost in it.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    # It takes milliseconds, more in a large process. Nobody waits for that at the end.
    async with open_bridge("trickle-memory", close_timeout=0) as bridge:
        while True:
            await trio.sleep(period)
            await bridge.call(trim, 0)
