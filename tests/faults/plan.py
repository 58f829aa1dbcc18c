"""The plan: which fault happens when, drawn from a seed before anything runs.

A plan depends on nothing but its arguments, so that a seed repeats it. It names workers by a
number; which process that is when the time comes, :mod:`.drive` decides (modulo the live ones).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from typing import NamedTuple

__all__ = ["END_TXN_FATES", "FAIL_POINTS", "FAULTS", "Fault", "make_plan"]

FAIL_POINTS = {
    "commit-snapshot": 40,
    "commit-produced": 40,
    "commit-offsets-sent": 40,
    "commit-broker": 40,
    "commit-done": 40,
    "store-begin": 12,
    "store-end": 12,
    "recovery-write": 3,
}
"""Where a worker can be made to die, and at which pass through it at most."""

END_TXN_FATES = ("swallow", "cut", "late")
"""What can become of an EndTxn; see :mod:`.proxy`."""

FAULTS = {
    "kill": 3,
    "failpoint": 4,
    "stop": 2,
    "pause": 1,
    "term": 2,
    "term-twice": 1,
    "grow": 1,
    "shrink": 1,
    "wipe": 2,
    "full": 1,
    "clock": 1,
    "cut": 1,
    "delay": 1,
    "blackhole": 1,
    "endtxn": 2,
    "broker": 1,
}
"""The faults, with how often each comes beside the others.

============  ==================================================================================
kill          SIGKILL, and another start
failpoint     a start with a fail point armed: SIGKILL between two steps
stop          SIGSTOP for longer than the session, or than the transaction's timeout; SIGCONT
pause         SIGSTOP for less than the session
term          SIGTERM: it must drain, and end with exit code 0
term-twice    SIGTERM, and again a moment later
grow, shrink  one worker more, one worker less
wipe          SIGKILL, and its data directory removed: all, or some partitions, or a file cut
full          a start with a limit on how large a file may be: it must end with a sentence
clock         a start with a clock that jumps by days
cut           all connections to the broker are reset
delay         all that passes the proxy is late
blackhole     nothing passes the proxy, and no connection is closed
endtxn        answers to EndTxn are dropped, or their connection is cut, or EndTxn itself is late
broker        the broker is killed, or stopped, and started again
============  ==================================================================================
"""


class Fault(NamedTuple):
    """One fault.

    Attributes:
        at: seconds from the start of the plan.
        kind: one of :data:`FAULTS`.
        worker: a number, for those that hit a worker.
        seconds: how long it lasts, or until the worker is started again.
        detail: what else it needs: a fail point, a way.
    """

    at: float
    kind: str
    worker: int
    seconds: float
    detail: str = ""


def make_plan(
    seed: int,
    seconds: float,
    *,
    every: float,
    session_timeout: float,
    faults: Collection[str] = FAULTS,
    points: Collection[str] = FAIL_POINTS,
    fates: Collection[str] = END_TXN_FATES,
) -> list[Fault]:
    """Return the faults of a seed, in order of time.

    Args:
        seed: decides all.
        seconds: how long the plan is.
        every: seconds between two faults, on average.
        session_timeout: the workers' own, which some faults must outlast.
        faults: those to draw from.
        points: the fail points to draw from.
        fates: those of an EndTxn to draw from.

    Raises:
        ValueError: a fault, a fail point or a fate that does not exist.
    """
    known = [*FAULTS, *FAIL_POINTS, *END_TXN_FATES]
    unknown = sorted({*faults, *points, *fates}.difference(known))
    if unknown:
        raise ValueError(
            f"there are no faults or fail points {unknown}: choose of {', '.join(known)}"
        )
    dice = random.Random(f"plan {seed}")
    kinds = [kind for kind in FAULTS if kind in faults]
    rounds = _rounds(dice, [point for point in FAIL_POINTS if point in points])
    chosen = [fate for fate in END_TXN_FATES if fate in fates]
    return list(_draw(dice, seconds, every, session_timeout, kinds, rounds, chosen))


def _rounds(dice: random.Random, points: list[str]) -> Iterator[str]:
    """Yield fail points, each once before any comes again."""
    while points:
        yield from dice.sample(points, len(points))


def _draw(
    dice: random.Random,
    seconds: float,
    every: float,
    session: float,
    kinds: list[str],
    points: Iterator[str],
    fates: list[str],
) -> Iterator[Fault]:
    at = every * dice.uniform(0.5, 1.5)
    while kinds and at < seconds:
        kind = dice.choices(kinds, [FAULTS[kind] for kind in kinds])[0]
        lasts, detail = _particulars(dice, kind, session, points, fates)
        yield Fault(round(at, 2), kind, dice.randrange(1000), round(lasts, 2), detail)
        at += every * dice.uniform(0.5, 1.5)


def _particulars(
    dice: random.Random, kind: str, session: float, points: Iterator[str], fates: list[str]
) -> tuple[float, str]:
    match kind:
        case "failpoint":
            name = next(points)
            return dice.uniform(0, 2), f"{name}:{dice.randint(1, FAIL_POINTS[name])}"
        case "stop":
            return dice.choice([session + 2, 2 * session + 2]), ""
        case "pause":
            return dice.uniform(0.2, session / 2), ""
        case "wipe":
            return dice.uniform(0, 2), dice.choice(["all", "some", "cut", "empty"])
        case "full" | "clock":
            size, days = dice.randrange(8, 100) * 1024, dice.randint(1, 400)
            return dice.uniform(0, 2), str(size if kind == "full" else days)
        case "delay":
            return dice.uniform(1, 5), str(round(dice.uniform(0.02, 0.4), 3))
        case "blackhole":
            return dice.uniform(1, 9), ""
        case "endtxn":
            return dice.uniform(2, 8), dice.choice(fates)
        case "broker":
            return dice.uniform(0, 3), dice.choice(["kill", "stop"])
        case _:
            return dice.uniform(0, 3), ""
