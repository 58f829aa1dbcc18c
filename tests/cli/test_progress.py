"""The bar over recovering shards: what it adds up, and what it draws."""

from __future__ import annotations

import io

import trio
from rich.console import Console
from trio.testing import MockClock

from trickle.cli.progress import RecoveryTally, Totals, show_recovery
from trickle.tables.recovery import RecoveryProgress


def progress(partition: int, done: int, total: int) -> RecoveryProgress:
    return RecoveryProgress(
        tables=("t",), count=4, partition=partition, done=done, total=total, rate=1.0,
        remaining=None,
    )  # fmt: skip


def test_shards_that_are_done_are_counted_on() -> None:
    tally = RecoveryTally()
    assert tally.add([], 5.0) is None
    assert tally.add([progress(0, 0, 100), progress(1, 0, 300)], 10.0) == Totals(
        2, 0, 0, 400, 0.0, None
    )
    assert tally.add([progress(0, 50, 100), progress(1, 50, 300)], 12.0) == Totals(
        2, 0, 100, 400, 50.0, 6.0
    )
    assert tally.add([progress(1, 100, 300), progress(2, 0, 100)], 14.0) == Totals(
        3, 1, 200, 500, 50.0, 6.0
    )
    assert tally.add([], 20.0) == Totals(3, 3, 500, 500, 50.0, 0.0)


async def drawn(*seen: list[RecoveryProgress]) -> str:
    """What stands on the terminal when the worker has seen these, 0.2 s apart."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    steps = iter(seen)
    with trio.move_on_after(0.2 * len(seen) - 0.1):
        await show_recovery(console, lambda: next(steps))
    return screen.getvalue()


async def test_the_bar_tells_records_rate_and_time(autojump_clock: MockClock) -> None:
    text = await drawn(
        [], [progress(0, 0, 90_000)], [progress(0, 1000, 90_000), progress(1, 0, 10_000)],
        [progress(0, 2000, 90_000), progress(1, 2000, 10_000)],
    )  # fmt: skip
    assert "recovering 1 partition " in text
    assert "4,000 of 100,000" in text
    assert "10,000/s" in text
    assert "10 s left" in text
    assert text.endswith("\x1b[2K"), "nothing of it stays"


async def test_nothing_to_recover_draws_nothing(autojump_clock: MockClock) -> None:
    assert await drawn([], []) == ""
