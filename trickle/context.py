"""What the running task is handling: how ``table[key] += 1`` and ``topic.send`` find their event.

A :class:`Turn` is one unit of work at a time: a lane's event, or a timer's tick. It gathers the
effects of the event in hand: records staged, shards written. The turn object lives as long as its
lane; ``number`` tells its events apart.

A task's context names its turn and the number of the event that it was in when the context was
made. A child task copies the context of the task that started it, whichever nursery holds it. So
a child that outlives its event still has the old number, and is refused instead of writing into
the event that is in hand by then.
"""

from __future__ import annotations

import itertools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from trickle.exceptions import EventSettledError
from trickle.types import Headers, RecordMetadata

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = [
    "CURRENT",
    "NUMBER",
    "OUTLET",
    "Effect",
    "Outlet",
    "Turn",
    "Written",
    "current_turn",
    "next_number",
]

Effect = tuple[str, int | None, bytes | None, bytes | None, Headers, int | None]
"""A staged record: topic, partition, key, value, headers, timestamp in ms."""

next_number = itertools.count(1).__next__
"""Event numbers are unique in the process, so a context can fit one event of one turn only."""


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

    def partitions(self, topic: str) -> int | None:
        """Return a topic's partition count where it is known."""
        ...

    def record_bytes_max(self, topic: str) -> int | None:
        """Return the largest record that a topic takes where it is known."""
        ...


class Written(Protocol):
    """Something with a part in the event in hand: a shard, or a test's double of one."""

    def check(self) -> None:
        """Find out, before anything settles, whether all changes can be written.

        Raises:
            EncodeError: a value that was changed in place cannot be written.
        """
        ...

    def settle(self) -> None:
        """The event is done: its changes join the next commit. It follows :meth:`check`."""
        ...

    def undo(self) -> None:
        """The event failed: its changes vanish."""
        ...


class Turn:
    """One unit of work at a time, and what the one in hand has done so far.

    Attributes:
        number: of the event in hand; a new one for each.
        touched: whether the event in hand has any effect, so that settling has work to do.
        effects: the records it has staged, in order.
        written: the shards with a part in it.
        shards: the shards of the lane by table; empty for a tick.
        after: what to call once the event's commit has succeeded.
    """

    __slots__ = ("after", "agent", "effects", "number", "partition", "shards", "touched", "written")

    def __init__(self, agent: str, partition: int | None, shards: dict[Any, Any]) -> None:
        self.agent = agent
        self.partition = partition
        self.shards: dict[Any, Any] = shards
        self.number = next_number()
        self.touched = False
        self.effects: list[Effect] = []
        self.written: list[Written] = []
        self.after: list[Callable[[], Awaitable[object] | object]] = []

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

    def join(self, shard: Written) -> None:
        """Add a shard to the event in hand: a shard does so at its first change in each event."""
        self.written.append(shard)
        self.touched = True

    def undo(self) -> None:
        """Drop all that the event in hand has done."""
        for shard in self.written:
            shard.undo()
        self.written.clear()
        self.effects.clear()
        self.after.clear()
        self.touched = False


CURRENT: ContextVar[Turn | None] = ContextVar("trickle.turn", default=None)
OUTLET: ContextVar[Outlet | None] = ContextVar("trickle.outlet", default=None)
NUMBER: ContextVar[int] = ContextVar("trickle.event", default=0)


def current_turn() -> Turn | None:
    """Return the turn of the running task, None outside any event.

    Raises:
        EventSettledError: the task's event has settled already.
    """
    turn = CURRENT.get()
    if turn is not None and turn.number != NUMBER.get():
        raise EventSettledError(
            f"the event of {turn.agent!r} that this work is part of has settled: what is sent or "
            "written now could be lost; do it before the event ends (a task: open its nursery "
            "inside the event), or in an @app.task"
        )
    return turn
