"""What the running task is handling: how ``table[key] += 1`` and ``topic.send`` find their event.

A :class:`Turn` is one unit of work at a time: a lane's event, or a timer's tick. It gathers the
effects of the event in hand: records staged, shards written. The turn object lives as long as its
lane; ``number`` tells its events apart.

A task's context names its turn. A child task copies the context of the task that started it,
whichever nursery holds it, so it would write into whatever event is in hand by then. Therefore its
context is bound to the event that it was started in, the moment it is started
(:func:`binding_children`): it names a :class:`Child`, which is refused once that event has settled.
Telling it there, once a task, costs the events themselves nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import trio

from trickle.exceptions import EventSettledError
from trickle.types import Headers, RecordMetadata

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

__all__ = [
    "CURRENT",
    "OUTLET",
    "PORTION",
    "Child",
    "Effect",
    "Outlet",
    "Outlets",
    "Turn",
    "Written",
    "binding_children",
    "current_turn",
]

Effect = tuple[str, int | None, bytes | None, bytes | None, Headers, int | None]
"""A staged record: topic, partition, key, value, headers, timestamp in ms."""

PORTION = 256
"""Records that are handed to the client at once: about a third of a millisecond."""

_next_number = itertools.count(1).__next__
_EVENTS_MAX = 1 << 32  # of one number's base: a turn counts its events up from there


class Outlet(Protocol):
    """The way out for what is sent outside an event, and what is known of the topics."""

    async def send(self, effect: Effect) -> RecordMetadata:
        """Deliver one record and tell where it went."""
        ...

    def send_nowait(self, effect: Effect) -> None:
        """Hand one record over; its failure is the Run's.

        Raises:
            trio.WouldBlock: the client's queue is full.
        """
        ...

    async def send_all(self, effects: Iterable[Effect]) -> int:
        """Deliver many records, in order, and return their number when all are delivered."""
        ...

    def bounds(self, topic: str) -> tuple[int | None, int | None]:
        """Return a topic's partition count, and the largest record that it takes, where known."""
        ...


class Outlets:
    """The ways out of all apps that run around a block of the user's.

    Args:
        innermost: for topics of no app that runs here.
        by_app: by the apps themselves: two of them may have one id.
    """

    __slots__ = ("by_app", "innermost")

    def __init__(self, innermost: Outlet | None, by_app: Mapping[object, Outlet]) -> None:
        self.innermost = innermost
        self.by_app = by_app

    def of(self, app: object) -> Outlet | None:
        """Return the way out for an app's topics."""
        return self.by_app.get(app, self.innermost)


class Written(Protocol):
    """Something with a part in the event in hand: a shard, or what was borrowed from one."""

    def settle(self) -> None:
        """The event is done: its changes join the next commit."""
        ...

    def undo(self) -> None:
        """The event failed: its changes vanish."""
        ...


class Unchecked(Written, Protocol):
    """Something whose changes are only known at the end of the event."""

    def check(self) -> None:
        """Find out, before anything settles, what has changed and whether it can be written.

        Raises:
            EncodeError: a value that was changed in place cannot be written.
        """
        ...


class Turn:
    """One unit of work at a time, and what the one in hand has done so far.

    Attributes:
        hand: whether an event is in hand.
        own: the shards of the lane by table; none for a tick.
        shards: the same while an event is in hand, otherwise empty: so that one look tells both.
        touched: whether the event in hand has any effect, so that settling has work to do.
        effects: the records it has staged, in order.
        written: what has a part in it.
        unchecked: those of them whose changes are only known at its end.
        after: what to call once the event's commit has succeeded.
    """

    __slots__ = (
        "_base",
        "after",
        "agent",
        "effects",
        "hand",
        "own",
        "partition",
        "shards",
        "touched",
        "unchecked",
        "written",
    )

    def __init__(self, agent: str, partition: int | None, shards: dict[Any, Any]) -> None:
        self.agent = agent
        self.partition = partition
        self.hand = False
        self.own: dict[Any, Any] = shards
        self.shards: dict[Any, Any] = _NOT_YET
        self.touched = False
        self.effects: list[Effect] = []
        self.written: list[Written] = []
        self.unchecked: list[Unchecked] = []
        self.renumber()
        self.after: list[Callable[[], Awaitable[object] | object]] = []

    @property
    def number(self) -> int:
        """What tells the event in hand from all others of the process."""
        return self._base

    def renumber(self) -> None:
        """From now on nothing bound to an earlier event is part of the one in hand."""
        self._base = _next_number() * _EVENTS_MAX

    def take_in_hand(self) -> None:
        """An event is in hand from now on."""
        self.hand = True
        self.shards = self.own

    def let_go(self) -> None:
        """No event is in hand from now on."""
        self.hand = False
        self.shut()

    def shut(self) -> None:
        """Nobody can do anything more as part of the event in hand."""
        self.shards = _NO_SHARDS
        self.renumber()

    @property
    def shut_out(self) -> bool:
        """Whether there is no event to be part of."""
        return self.shards is not self.own

    def timestamp_ms(self) -> int | None:
        """Return the timestamp that records sent now carry unless they are given another."""
        return None

    def key_bytes(self) -> bytes | None:
        """Return the key of the event in hand, where there is one."""
        return None

    def source_partitions(self) -> int | None:
        """Return the partition count of the event's topic, where there is one."""
        return None

    def stage(self, effect: Effect) -> None:
        """Add a record to the event in hand."""
        self.effects.append(effect)
        self.touched = True

    def join(self, part: Unchecked) -> None:
        """Give something a part in the event in hand, whose changes are known at the end."""
        self.written.append(part)
        self.unchecked.append(part)
        self.touched = True

    def undo(self) -> None:
        """Drop all that the event in hand has done."""
        for part in self.written:
            part.undo()
        self.written.clear()
        self.unchecked.clear()
        self.effects.clear()
        self.after.clear()
        self.touched = False


_NO_SHARDS: dict[Any, Any] = {}
_NOT_YET: dict[Any, Any] = {}  # the shards of a turn before its first event


class Child:
    """What the context of a child task names: a turn, and the event that it was started in."""

    __slots__ = ("number", "outside", "turn")
    shards: ClassVar[dict[Any, Any]] = _NO_SHARDS  # a table looks no further than here at first
    own: ClassVar[None] = None

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.number = turn.number
        self.outside = not turn.hand


CURRENT: ContextVar[Turn | Child | None] = ContextVar("trickle.turn", default=None)
OUTLET: ContextVar[Outlet | Outlets | None] = ContextVar("trickle.outlet", default=None)


def current_turn() -> Turn | None:
    """Return the turn of the running task; None outside any event, or before an agent's first.

    Raises:
        EventSettledError: the task's event has settled already.
    """
    found = CURRENT.get()
    if found is None:
        return None
    if found.shards is found.own:  # the usual case, in one look: a turn with an event in hand
        return cast("Turn", found)
    turn = found.turn if isinstance(found, Child) else found
    if turn.shards is _NOT_YET:
        return None
    if turn.shut_out or (isinstance(found, Child) and found.number != turn.number):
        if isinstance(found, Child) and found.outside:
            raise EventSettledError(
                f"this task of {turn.agent!r} was started outside of any event, so what it sends "
                "or writes now is part of none, and could be lost: iterate the stream in the "
                "agent's own task, start others inside the event, or let them be an @app.task"
            )
        raise EventSettledError(
            f"the event of {turn.agent!r} that this work is part of has settled: what is sent or "
            "written now could be lost; do it before the event ends (a task: open its nursery "
            "inside the event, and iterate the stream outside of it), or in an @app.task"
        )
    return turn


class _Binding(trio.abc.Instrument):
    """Binds the context of each child task to the event that is in hand as it is started."""

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        turn = task.context.get(CURRENT)
        if isinstance(turn, Turn):
            task.context.run(CURRENT.set, Child(turn))


@contextmanager
def binding_children() -> Generator[None]:
    """Bind the tasks that are started meanwhile, in all of this Trio program, to their events."""
    binding = _Binding()
    trio.lowlevel.add_instrument(binding)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(binding)
