"""How one contestant measures itself: it runs in a process of its own and prints one JSON line.

All set the garbage collector alike, as ``trickle worker`` does: what exists at the start is frozen,
and the first generation is collected every 50,000 allocations.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

__all__ = ["Stopwatch", "now", "peak_mb", "say", "tune_gc"]


def peak_mb() -> float:
    """Return the most memory that this process has had resident.

    Not by getrusage: a child's figure there begins with its parent's at the fork.
    """
    with open("/proc/self/status", encoding="ascii") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmHWM"].split()[0]) / 1024


def say(result: dict[str, Any]) -> None:
    """Print a line for whoever started this process."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def tune_gc() -> None:
    """Set the collector as a worker does."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


class Stopwatch:
    """Wall and CPU time from the first record to the end of the last one's work."""

    def __init__(self) -> None:
        self._began = now()

    def start(self) -> None:
        """Start: the first record is here."""
        self._began = now()

    def report(
        self,
        records: int,
        *,
        seconds: float | None = None,
        ended: tuple[float, float] | None = None,
    ) -> None:
        """Print the result.

        Args:
            records: that were handled.
            seconds: that they took, where the contestant knows better than this watch.
            ended: what :func:`now` was at the end, where that has passed.
        """
        wall, cpu = ended or now()
        seconds = wall - self._began[0] if seconds is None else seconds
        say(
            {
                "records": records,
                "seconds": seconds,
                "per_second": records / seconds,
                "cpu_us": (cpu - self._began[1]) / records * 1e6,
                "peak_mb": peak_mb(),
            }
        )


def now() -> tuple[float, float]:
    """Return wall and CPU time, in seconds."""
    return time.perf_counter(), time.process_time()
