"""One progress bar over all shards that are recovered while a worker starts, on a terminal.

It is drawn through the log lines' own console, which keeps the two apart, and by a task, without
the thread that Rich would start. What is counted are changelog offsets: records, and the markers
of transactions. A shard that is done is counted on, or the bar would go back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import trio
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import Console

    from trickle.tables.recovery import RecoveryProgress

__all__ = ["RecoveryTally", "show_recovery"]

_INTERVAL_S = 0.2


class Totals(NamedTuple):
    """All shards together.

    Attributes:
        shards: partition numbers that were, or are, recovered.
        ready: how many of them are done.
        remaining: seconds left; None where it cannot be told.
    """

    shards: int
    ready: int
    done: int
    total: int
    rate: float
    remaining: float | None


class RecoveryTally:
    """Adds up the recoveries that are seen under way, and those that were."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], tuple[int, int]] = {}
        self._since: float | None = None

    def add(self, recovering: Iterable[RecoveryProgress], now: float) -> Totals | None:
        """Take what is under way now; return the sums, or None before anything was.

        Args:
            recovering: as the table manager's statistics have it.
            now: seconds on any clock.
        """
        current = {(r.count, r.partition): (r.done, r.total) for r in recovering}
        ended = {at: (total, total) for at, (_, total) in self._seen.items() if at not in current}
        self._seen.update(current | ended)
        if not self._seen:
            return None
        if self._since is None:
            self._since = now
        done = sum(done for done, _ in self._seen.values())
        total = sum(total for _, total in self._seen.values())
        elapsed = now - self._since
        rate = done / elapsed if elapsed > 0 else 0.0
        remaining = (total - done) / rate if rate else None
        return Totals(len(self._seen), len(ended), done, total, rate, remaining)


async def show_recovery(
    console: Console, recovering: Callable[[], Iterable[RecoveryProgress]]
) -> None:
    """Draw the bar until cancelled; nothing is drawn where nothing is recovered.

    Args:
        console: a terminal.
        recovering: tells what is under way.
    """
    tally = RecoveryTally()
    bar = Progress(
        TextColumn("recovering {task.fields[shards]}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[words]}"),
        console=console, auto_refresh=False, transient=True, expand=True,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    task = bar.add_task("", total=None, shards="", words="")
    drawn = False
    try:
        while True:
            totals = tally.add(recovering(), trio.current_time())
            if totals is not None:
                if not drawn:
                    drawn = True
                    bar.start()
                bar.update(
                    task, completed=totals.done, total=max(1, totals.total), refresh=True,
                    shards=_shards(totals), words=_words(totals),
                )  # fmt: skip
            await trio.sleep(_INTERVAL_S)
    finally:
        if drawn:
            bar.stop()


def _shards(totals: Totals) -> str:
    if totals.shards == 1:
        return "1 partition"
    return f"{totals.shards} partitions, {totals.ready} done"


def _words(totals: Totals) -> str:
    left = "?" if totals.remaining is None else _duration(totals.remaining)
    return f"{totals.done:,} of {totals.total:,}  {totals.rate:,.0f}/s  {left} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
