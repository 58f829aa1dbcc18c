"""Memory: what is done so that a process that runs for weeks stays small.

What the C library is told is glibc's own, and of no effect elsewhere.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from contextlib import suppress

import trio

from trickle.utils.bridge import open_bridge

__all__ = ["bound_heap", "give_back"]

ARENAS_MAX = 2
MAPPED_BYTES = 1 << 20
PERIOD_S = 60.0
# Of glibc's malloc.h
_M_ARENA_MAX = -8
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1


def bound_heap() -> None:
    """Let all threads share two of the C library's arenas, and large blocks come from the system.

    glibc gives each thread an arena of its own, up to eight for each core, and does not use for
    others what a thread left there when it ended. A Kafka client starts threads with each
    connection and each new client: memory grew with every broker that was lost and found again.

    LMDB takes 3 MB for an environment's lists of pages, and touches a few of them. By itself glibc
    raises the size from which blocks come from the system once such a block was freed; the next one
    is cut from the heap, and cleared: an environment that was opened again took 2.1 MB, not 0.1.

    What the environment says goes before, by glibc's variables or its tunables.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    with suppress(AttributeError, OSError, TypeError):
        tell = ctypes.CDLL(None).mallopt
        for variable, option, value in (
            ("MALLOC_ARENA_MAX", _M_ARENA_MAX, ARENAS_MAX),
            ("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD, MAPPED_BYTES),
            # As glibc has it, were it left to itself
            ("MALLOC_TRIM_THRESHOLD_", _M_TRIM_THRESHOLD, 2 * MAPPED_BYTES),
        ):
            tunable = f"glibc.malloc.{variable.removeprefix('MALLOC_').rstrip('_').lower()}="
            if not os.environ.get(variable) and tunable not in tunables:
                tell(option, value)


async def give_back(period: float = PERIOD_S) -> None:
    """Give free memory back to the system, every so many seconds, until cancelled.

    What refers to itself goes first, unless it is old. A worker that is told to collect it seldom,
    and has little to do, does not come to that for an hour; it takes milliseconds.

    By itself glibc gives back what lies free at the end of an arena. Recoveries and floods leave
    their peaks in front of something that stays, and each new one may find other gaps: without
    this a worker's memory grew by a third in half an hour of faults, and nothing was lost in it.
    """
    trim = _trim()
    # That takes milliseconds, more in a large process. Nobody waits for that at the end.
    async with open_bridge("trickle-memory", close_timeout=0) as bridge:
        while True:
            await trio.sleep(period)
            gc.collect(1)
            await bridge.call(trim, 0)


def _trim() -> Callable[[int], object]:
    with suppress(AttributeError, OSError, TypeError):
        return ctypes.CDLL(None).malloc_trim
    return lambda _: None
