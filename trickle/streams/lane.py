"""A lane: one agent's work on one assigned partition number.

It is the unit of ordering, of isolation and of revocation. Batches of records arrive in its
inbox; the agent's stream takes events out of it, one at a time.

How it is fast. A batch is worked on in *chunks*: some hundred records, decoded at once by ``map``.
Taking an event is ``next()`` on the chunk's iterator, and nothing is counted per event: where the
lane stands follows from the iterator's ``__length_hint__`` when somebody asks (once a commit). All
that need not happen for each event happens between two chunks: letting other tasks run, waiting
for room in the commit, the next batch.

How it is exact. ``hand`` says whether an event is in hand: taken, and not settled; its number, too,
follows from the iterator. Settling is synchronous: checked first, then published, then joined to
the next commit. So a commit's snapshot, which is synchronous as well, sees each event as a whole or
not at all. A lane that is to take no further event gets an empty iterator in place of its chunk's,
and so comes to :meth:`Lane.advance`, whatever it was doing; the hot path asks nothing.

``pinned`` holds the positions at which a group of events began that settle together (``take``), and
``members`` its records so far: a filter before it may have passed over others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import length_hint
from typing import Any

import trio

from trickle.context import PORTION, Turn
from trickle.exceptions import DecodeError, TrickleError, UsageError
from trickle.serializers import BoundCodec
from trickle.streams.call import FunctionCall
from trickle.streams.nowhere import Nowhere
from trickle.streams.pace import Pace
from trickle.streams.settlement import OutOfPatience, Settlement
from trickle.transport.batches import Batch
from trickle.types import Record

__all__ = ["Lane"]

_NOTHING: Iterator[Any] = iter(())


class Lane(Turn):
    """One agent's work on one partition number, for one generation.

    Args:
        agent: the agent's name.
        partition: the partition number.
        shards: the shards of the partition number's scope, by table.
        positions: where to start, by topic.
        codecs: of the values, by topic.
        settlement: where settled events go.
        refuse: what the agent's policy does about a record that cannot become an event: it
            returns, perhaps having staged effects, or raises where the policy is to stop.
        pace: when to let other tasks run.
        taken: told how many bytes have left the inbox.
    """

    __slots__ = (
        "_refuse", "_taken", "attempt", "attempt_of", "base", "batch", "call", "chunk", "codecs",
        "condemned", "counted", "ended", "frontier", "frozen", "gathered", "history", "idle",
        "inbox", "inbox_bytes", "last", "members", "pace", "partial", "patience", "pinned",
        "positions", "raw", "scope", "settlement", "size", "stamps", "stopping", "values", "wake",
    )  # fmt: skip

    def __init__(
        self,
        agent: str,
        partition: int,
        *,
        shards: dict[Any, Any],
        positions: Mapping[str, int],
        codecs: Mapping[str, BoundCodec],
        settlement: Settlement[Lane],
        refuse: Callable[[Lane, Record, TrickleError], Awaitable[None]],
        pace: Pace,
        taken: Callable[[int], None],
    ) -> None:
        self.size = 0
        self.chunk: Iterator[Any] = _NOTHING
        self.pinned: dict[str, int] | None = None
        self.frozen: dict[str, int] | None = None  # where it stood when it was abandoned
        self.partial = False  # the event in hand has more values to come, of a flat_map
        super().__init__(agent, partition, shards)
        self.codecs = codecs
        self.settlement = settlement
        self._refuse = refuse
        self.pace = pace
        self._taken = taken
        self.scope = trio.CancelScope()
        self.call = FunctionCall()
        self.ended = trio.Event()
        # What waits, and up to where it has been delivered
        self.inbox: deque[tuple[Batch, int]] = deque()
        self.inbox_bytes = 0
        self.frontier = dict(positions)
        self.wake = trio.Event()
        self.idle = True
        # What is being worked on: records [base, base + size) of the batch are the chunk
        self.positions = dict(positions)
        self.batch: Batch | None = None
        self.raw: Any = ()
        self.base = 0
        self.counted = 0  # of the chunk's events, those that were told of as settled
        self.gathered = 0  # events of the group in hand that lie in chunks before this one
        self.values: Iterator[Any] = _NOTHING
        self.stamps: Sequence[int | None] = ()  # of the chunk's records, once one was asked for
        self.history: list[tuple[Batch, int]] = []
        self.members: list[tuple[Batch, int]] = []
        self.patience = math.inf
        self.stopping = False
        # Failures
        self.attempt = 0
        self.attempt_of: tuple[str, int] | None = None
        self.condemned: dict[tuple[str, int], TrickleError] = {}
        self.last: list[tuple[str, int]] = []  # what settled last, while commits are narrow

    # What arrives

    def deliver(self, batch: Batch) -> None:
        """Put a batch into the inbox; what lies below the lane's position is dropped, always."""
        frontier = self.frontier[batch.topic]
        if batch.next_offset <= frontier or self.stopping:
            return
        start = 0
        if batch.offset(0) < frontier:
            fresh = (i for i in range(len(batch)) if batch.offset(i) >= frontier)
            start = next(fresh, len(batch))  # none, where only a gap lies above
        self.frontier[batch.topic] = batch.next_offset
        self.inbox.append((batch, start))
        self.inbox_bytes += batch.size_bytes
        self.wake.set()

    def drain(self) -> None:
        """Let the lane end after the event in hand."""
        self.stopping = True
        self.values = _NOTHING
        self.wake.set()

    # Where it stands

    def settled_positions(self) -> dict[str, int]:
        """Return the position behind the last settled event, by topic."""
        if self.frozen is not None:
            return self.frozen
        if self.pinned is not None:
            return self.pinned
        positions = dict(self.positions)
        batch = self.batch
        if batch is not None:
            index = self._next_index() - self.hand
            at = batch.offset(index) if index < len(batch) else batch.next_offset
            positions[batch.topic] = at
        return positions

    @property
    def number(self) -> int:
        """What tells the event in hand from all others of the process."""
        if self.pinned is not None:
            return self._base
        return self._base + self.size - length_hint(self.chunk)

    def _next_index(self) -> int:
        return self.base + self.size - length_hint(self.chunk)

    def in_hand(self) -> tuple[Batch, int]:
        """Return the batch of the event in hand, the last one of a group, and its index there."""
        if self.batch is not None:
            return self.batch, self._next_index() - 1
        if self.history:
            batch, _ = self.history[-1]
            return batch, len(batch) - 1
        raise UsageError(f"agent {self.agent!r} has no event in hand")

    def records_in_hand(self) -> list[Record]:
        """Return the records of the event in hand: one, or those of a group."""
        members = self.members or [self.in_hand()]
        seen = {(batch.topic, batch.offset(index)): (batch, index) for batch, index in members}
        return [batch.record(index) for batch, index in seen.values()]

    def timestamp_ms(self) -> int | None:
        if not self.stamps:
            batch, index = self.in_hand()
            if not self.size:
                return batch.timestamps_ms(index, index + 1)[0]
            # Each record that is sent asks, and what the chunk's next events send will.
            self.stamps = batch.timestamps_ms(self.base, self.base + self.size)
        return self.stamps[self.size - length_hint(self.chunk) - 1]

    def key_bytes(self) -> bytes | None:
        batch, index = self.in_hand()
        return batch.record(index).key

    # Taking and settling

    def pin(self) -> None:
        """Begin a group of events that settle together."""
        self.count_settled()
        self.pinned = self.settled_positions()
        self.history = [] if self.batch is None else [(self.batch, self._next_index())]
        self.members = []
        self.values = _NOTHING
        self.renumber()

    @property
    def has_more(self) -> bool:
        """Whether there are values behind the event in hand that are decoded already."""
        return length_hint(self.chunk) > 0

    def take_rest(self) -> list[Any]:
        """Take all values that are decoded already into the group in hand."""
        batch, index = self.in_hand()
        rest = list(self.chunk)
        self.members.extend(zip(repeat(batch), range(index + 1, index + 1 + len(rest))))
        return rest

    def blame(self) -> None:
        """A step has failed on what was taken last: its record is one of the group in hand."""
        if self.hand and length_hint(self.chunk) < self.size:
            self.members.append(self.in_hand())

    def pass_over(self) -> None:
        """The event taken last has no part in the group; one that is empty begins behind it."""
        if self.pinned is not None and not self.members:
            self.finish()
            self.pin()

    def settle(self) -> None:
        """The event in hand is done: all its effects and changes join the next commit.

        Raises:
            EncodeError: a value changed in place cannot be written; nothing has settled then.
        """
        if self.unchecked:
            for borrowed in self.unchecked:
                borrowed.check()
            self.unchecked.clear()
        if self.effects:
            fresh = self.settlement.fresh
            first = not fresh
            fresh += self.effects
            self.effects.clear()
            if first or len(fresh) >= PORTION:
                self.settlement.published()
                if self.settlement.crowded:
                    self.values = _NOTHING  # the next event waits for room
        for part in self.written:
            part.settle()
        self.written.clear()
        if self.after:
            self.settlement.after(self.after)
            self.after = []
        self.touched = False

    def finish(self) -> None:
        """Settle the event in hand, if any, and have none."""
        if self.touched:
            self.settle()
        if self.hand or self.pinned is not None:
            if self.settlement.chunk_max == 1 and self.hand:
                self.last = [(record.topic, record.offset) for record in self.records_in_hand()]
            self.pinned = None
            self.history, self.members = [], []
            self.let_go()  # a task of the event that is still there is too late now
        self.values = _NOTHING
        if self.gathered:
            gathered, self.gathered = self.gathered, 0
            self.settlement.settled(self, gathered)

    async def advance(self, *, keep: bool = False) -> Any:
        """Take the next event where the chunk is used up, or was taken away.

        Args:
            keep: the event joins those in hand, instead of following them.

        Raises:
            StopAsyncIteration: the lane is to end.
            OutOfPatience: a group's time is over.
        """
        if not keep:
            self.finish()
        while True:
            if self.stopping:
                await self.call.end()
                raise StopAsyncIteration
            if self.settlement.crowded and not self.hand:
                await self.settlement.room(self)
                if self.stopping:
                    raise StopAsyncIteration
            for value in self.chunk:
                self.take_in_hand()
                if not keep:
                    self.values = self.chunk
                return value
            self._close_chunk()
            await self.pace.breathe()
            if trio.current_time() >= self.patience:
                raise OutOfPatience
            if self.batch is not None:
                await self._open_chunk(self.batch)
            elif self.inbox:
                self._take_batch()
            else:
                await self._wait()

    def _take_batch(self) -> None:
        if self.idle:
            self.idle = False
            self.settlement.busy(self)
        batch, start = self.inbox.popleft()
        self.inbox_bytes -= batch.size_bytes
        self._taken(batch.size_bytes)
        self.batch = batch
        self.raw = batch.values()
        self.base = start
        if self.pinned is not None:
            self.history.append((batch, start))

    def close(self) -> None:
        """The lane has ended: an event in hand has not happened, nor will what waits.

        Its position stays to be asked for; records and tables it lets go, for whatever still refers
        to the lane may take long to go itself.
        """
        self.undo()
        self.count_settled()
        self.stopping = True
        self.shut()
        self.positions = dict(self.settled_positions())
        self.batch, self.raw, self.history, self.pinned = None, (), [], None
        self.base, self.size, self.counted, self.stamps = 0, 0, 0, ()
        self.chunk = self.values = _NOTHING
        self.hand = False
        self.own = {}
        self._taken(self.inbox_bytes)
        self.inbox.clear()
        self.inbox_bytes = 0

    def abandon(self) -> None:
        """The lane is to end at once: whatever its agent does from now on goes nowhere.

        An event that ends all the same, before the commit that gives its partition back, has not
        happened: its position must not be in that commit.
        """
        self.count_settled()
        self.frozen = self.settled_positions()
        self.undo()
        self.drain()
        self.shut()
        self.settlement = Nowhere()
        self._taken(self.inbox_bytes)
        self.inbox.clear()
        self.inbox_bytes = 0

    @property
    def abandoned(self) -> bool:
        """Whether nothing that it does has any effect."""
        return isinstance(self.settlement, Nowhere)

    def count_settled(self) -> None:
        """Tell of what has settled within the chunk: a commit that begins now has it in it."""
        if self.pinned is None:
            settled = self._next_index() - self.base - self.hand - self.counted
            if settled > 0:
                self.counted += settled
                self.settlement.settled(self, settled)

    def _close_chunk(self) -> None:
        """Count what the chunk held as taken; with it, perhaps, the batch ends."""
        batch = self.batch
        if batch is None:
            return
        if self.size:
            if self.pinned is not None:  # nobody is told before the group has settled
                self.gathered += self.size - self.counted
            elif self.size > self.counted:
                self.settlement.settled(self, self.size - self.counted)
            self.base += self.size
            self.size = self.counted = 0
            self.stamps = ()
        if self.base >= len(batch) and not self.hand:
            self.settlement.handled(self, batch.timestamp_ms(len(batch) - 1))
            self.positions[batch.topic] = batch.next_offset
            self.batch = None
            self.raw = ()

    async def _open_chunk(self, batch: Batch) -> None:
        """Decode the next records of the batch."""
        start = self.base
        raw = self.raw[start : start + min(self.pace.size, self.settlement.chunk_max)]
        if not raw:  # the batch is used up, and a group still holds its last record
            self.positions[batch.topic] = batch.next_offset
            self.batch = None
            return
        if self.condemned:
            condemned = self.condemned.pop((batch.topic, batch.offset(start)), None)
            if condemned is not None:
                await self._dispose(batch, condemned)
                return
        codec = self.codecs[batch.topic]
        values: list[Any]
        try:
            values = [] if None in raw else list(map(codec.decode_fast, raw))
        except Exception:  # noqa: BLE001 - which record it was, and why, is found one by one
            values = []
        if not values:
            for data in raw:
                try:
                    values.append(codec.decode(data))
                except DecodeError as error:
                    if not values:
                        await self._dispose(batch, error)
                        return
                    break  # it comes first in the next chunk
        self.size = len(values)
        self.chunk = iter(values)
        if self.pinned is None:  # a group is one event, whatever number of chunks it comes from
            self.renumber()

    async def _dispose(self, batch: Batch, error: TrickleError) -> None:
        """Let the agent's policy decide on the record at ``base``, which is to be no event."""
        grouped = self.hand
        record = batch.record(self.base)
        self.size, self.chunk = 1, _NOTHING
        self.hand = True
        try:
            await self._refuse(self, record, error)
        except BaseException:
            self.size, self.stamps, self.hand = 0, (), grouped
            if grouped:
                self.members.append((batch, self.base))
            raise
        # No await from here on: a commit sees the effects and the position together, or neither.
        # A group goes on, and settles what was staged with the rest.
        if grouped:
            self.members.append((batch, self.base))
        else:
            self.settle()
            if self.settlement.chunk_max == 1:
                self.last = [(record.topic, record.offset)]
        self.hand = grouped
        if self.pinned is not None and not grouped:  # the group begins behind this record
            self.pinned = None
            self.pinned = self.settled_positions()
            self.history = [(batch, self._next_index())]

    def rewind(self) -> None:
        """Take the events in hand again: after a failed attempt."""
        self.count_settled()
        if self.pinned is None:
            batch, index = self.in_hand()
        elif not self.history:  # a group that has nothing yet
            self.pinned = None
            return
        else:
            (batch, index), *later = self.history
            for item in reversed(later):
                self.inbox.appendleft(item)
                self.inbox_bytes += item[0].size_bytes
                self._taken(-item[0].size_bytes)
            self.positions = dict(self.pinned)
        self.batch = batch
        self.raw = batch.values()
        self.base, self.size, self.counted, self.stamps = index, 0, 0, ()
        self.gathered = 0
        self.chunk = self.values = _NOTHING
        self.pinned = None
        self.history, self.members = [], []
        self.let_go()

    async def rest(self, seconds: float) -> None:
        """Wait before a retry; a drain ends it."""
        with trio.move_on_after(seconds):
            while not self.stopping:
                self.wake = trio.Event()
                await self.wake.wait()
        self.pace.rested()

    async def _wait(self) -> None:
        if self.stopping:  # a drain came while others ran
            return
        if self.patience == math.inf:
            self.idle = True
            self.settlement.dry(self)  # also where it was dry before: it may have been given room
        self.wake = trio.Event()
        with trio.move_on_at(self.patience):
            await self.wake.wait()
        self.pace.rested()
