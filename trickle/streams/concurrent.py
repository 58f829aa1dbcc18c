"""A lane with concurrency: several events of one partition in hand at once.

**Strands.** A :class:`ConcurrentLane` has the inbox, and up to N *strands*: each is a lane in
small, with a task, a call of the agent's function and a turn of its own. It is given one record at
a time, as a batch of one, and does with it all that a lane does: decode, settle, undo, retry,
gather a group (``take``). So what is true of one event in a lane is true of one event in a strand,
and there is no second implementation of it. Strands are started when there is work for them.

**Giving.** The lane reads its batches in order, and gives each record to a strand that waits,
unless a record of the same order (:mod:`.ordering`) is in hand or waits itself: then it is *held
back* behind that one, and the lane reads on. When an event settles, the next one held back behind
it is *ready*, and goes before all that has not been read. All of this is synchronous: a strand asks
and has its record at once, or waits until somebody else's doing gives it one.

A strand that waits with a part of a group in hand (``take``) goes before the others, so that groups
fill up, and what it holds is no obstacle to it: a record of one of its own orders joins the group.

**Positions.** Each topic has a ledger (:mod:`trickle.ledger`): the lane's position is the lowest
offset that has not settled, and what has settled beyond it is committed as well. Settling is
synchronous (see :mod:`.lane`), and the ledger is told within it, so a commit sees both or neither.

**Bounds.** Strands are N at most. The lane reads ahead while fewer than :data:`AHEAD` times N
records, and :data:`AHEAD_BYTES`, are held back, and while the ledger fits into the metadata of the
committed offset, whatever settles first. Where it does not fit, the lane waits for gaps to close.
Where all strands wait then, some with half a group, the oldest group ends as it is: nobody would
close a gap otherwise.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextvars import copy_context
from heapq import heappop, heappush
from typing import Any, NamedTuple

import trio

from trickle.exceptions import TrickleError
from trickle.ledger import Ledger, Ranges
from trickle.streams.lane import Lane
from trickle.streams.ordering import Ordering
from trickle.transport.batches import Batch
from trickle.transport.shared import RecordBatch
from trickle.types import Record

__all__ = ["ConcurrentLane", "Strand"]

AHEAD = 10  # times the concurrency: records that are held back at most
AHEAD_BYTES = 16 << 20


class _Parcel(NamedTuple):
    """A record on its way to a strand; in the order of ``number`` as they were read."""

    number: int
    batch: Batch
    offset: int
    lock: Hashable | None
    order: Any
    failure: TrickleError | None


class _Queue:
    """One order: who has it in hand, and what is held back behind that."""

    __slots__ = ("holder", "waiting")

    def __init__(self) -> None:
        self.holder: Strand | None = None
        self.waiting: deque[_Parcel] = deque()


class Strand(Lane):
    """One of a lane's workers: a lane in small, which is given its records one by one.

    Attributes:
        more: orders that it holds and of which more is held back: a group may go on with them.
    """

    __slots__ = ("_begun", "_held", "_parent", "more")

    def __init__(self, parent: ConcurrentLane) -> None:
        assert parent.partition is not None
        super().__init__(
            parent.agent,
            parent.partition,
            shards=parent.own,
            positions=parent.positions,
            codecs=parent.codecs,
            settlement=parent.settlement,
            refuse=parent.refuse,
            pace=parent.pace,
            taken=_nothing,
        )
        self._parent = parent
        self.condemned = parent.condemned
        self._held: list[_Parcel] = []  # all that it was given and has not settled
        self._begun = 0  # so many of them are in hand
        self.more: deque[Hashable] = deque()

    def give(self, parcel: _Parcel) -> None:
        """Put a record into the inbox."""
        self._held.append(parcel)
        batch = parcel.batch
        if parcel.failure is not None:
            self.condemned[batch.topic, parcel.offset] = parcel.failure
        self.inbox.append((batch, 0))
        self.inbox_bytes += batch.size_bytes
        self.wake.set()

    def first_number(self) -> int:
        """Return which record it has in hand longest."""
        return self._held[0].number

    def cut_short(self) -> None:
        """End a group that waits for more as it is."""
        self.patience = -math.inf
        self.wake.set()

    def orders(self, start: int) -> Sequence[Any]:
        """Return the orders of the events in hand: of a group, those from one on."""
        return [parcel.order for parcel in self._held[start : self._begun]]

    async def advance(self, *, keep: bool = False) -> Any:
        value = await super().advance(keep=keep)
        self._begun += 1
        return value

    def finish(self) -> None:
        super().finish()
        self._settled()

    async def _dispose(self, batch: Batch, error: TrickleError) -> None:
        await super()._dispose(batch, error)
        self._begun += 1
        if not self.hand:  # it joined no group
            self._settled()

    def _settled(self) -> None:
        if self._begun:
            done, self._held = self._held[: self._begun], self._held[self._begun :]
            self._begun = 0
            keeps: set[Hashable] = set()
            if self._held:  # one came too late for a group
                keeps.update(parcel.lock for parcel in self._held)
                self.more = deque(lock for lock in self.more if lock in keeps)
            else:
                self.more.clear()
            self._parent.strand_settled(done, keeps)

    def rewind(self) -> None:
        super().rewind()
        self._begun = 0

    def close(self) -> None:
        super().close()
        self.own, self._held = {}, []

    async def _wait(self) -> None:
        if self.stopping:
            return
        self.wake = trio.Event()
        try:
            if self._parent.ask(self):
                return
            if self.patience == math.inf:
                self.idle = True
                self.settlement.dry(self)
                await self.wake.wait()
            else:
                with trio.move_on_at(self.patience):
                    await self.wake.wait()
        finally:
            self._parent.unask(self)
        self.pace.rested()


class ConcurrentLane(Lane):
    """One agent's work on one partition number, several events at a time.

    Args:
        concurrency: how many strands there may be.
        ordering: by what events are kept in order.
        ledgers: where to start, by topic, and what has settled beyond.
        rooms: how many characters each topic's ranges may have in the metadata.
        view: makes what a strand sees of a shard.
        failed: told of an error that ends a strand, and with it the lane.
        lane: what a :class:`Lane` takes.

    Attributes:
        strands: those that have been started.
        refuse: see :class:`Lane`.
    """

    __slots__ = (
        "_ahead_bytes",
        "_asking",
        "_at",
        "_concurrency",
        "_delivering",
        "_failed",
        "_gathering",
        "_held_back",
        "_ledgers",
        "_numbers",
        "_ordering",
        "_queues",
        "_reading",
        "_ready",
        "_rooms",
        "_start",
        "_view",
        "refuse",
        "strands",
    )

    def __init__(
        self,
        agent: str,
        partition: int,
        *,
        concurrency: int,
        ordering: Ordering,
        ledgers: Mapping[str, Ledger],
        rooms: Mapping[str, int],
        view: Callable[[Any, Strand], Any],
        failed: Callable[[Lane, Exception], None],
        refuse: Callable[[Lane, Record, TrickleError], Awaitable[None]],
        **lane: Any,
    ) -> None:
        super().__init__(agent, partition, refuse=refuse, **lane)
        self.refuse = refuse
        self.strands: list[Strand] = []
        self._concurrency = concurrency
        self._ordering = ordering
        self._ledgers = ledgers
        self._rooms = rooms
        self._view = view
        self._failed = failed
        self._start: Callable[[Strand], None] | None = None
        # What is being read
        self._reading: Batch | None = None
        self._at = 0
        self._numbers = 0
        self._delivering = False
        # What has been read and has not settled
        self._queues: dict[Hashable, _Queue] = {}
        self._ready: list[_Parcel] = []
        self._held_back = 0
        self._ahead_bytes = 0
        # Who waits: those with a part of a group in hand, and the others
        self._gathering: dict[Strand, None] = {}
        self._asking: dict[Strand, None] = {}

    # Its strands

    async def run(self, work: Callable[[Strand], Awaitable[None]]) -> None:
        """Work until the lane is to stop, each strand by the agent's function.

        A strand that fails lets the others finish what they have in hand.
        """
        settlement = self.settlement  # that of the lane may change, where it is given up

        async def strand_runs(strand: Strand) -> None:
            try:
                await work(strand)
            except Exception as error:  # noqa: BLE001 - it is told, and ends the worker
                self._failed(strand, error)
            finally:
                self.drain()  # also where it was cancelled: what arrives now starts no strand
                settlement.dry(strand)

        context = copy_context()  # whoever makes one more start, its context is not theirs
        async with trio.open_nursery() as nursery:

            def start(strand: Strand) -> None:
                name = f"{self.agent}[{self.partition}]"
                context.copy().run(lambda: nursery.start_soon(strand_runs, strand, name=name))

            self._start = start
            start(self._new_strand())

    def _new_strand(self) -> Strand:
        strand = Strand(self)
        if self._concurrency > 1:
            strand.own = {table: self._view(shard, strand) for table, shard in self.own.items()}
        self.strands.append(strand)
        return strand

    # What arrives, and who gets it

    def deliver(self, batch: Batch) -> None:
        """Put a batch into the inbox, and give to whoever waits."""
        super().deliver(batch)
        self._delivering = True
        try:
            self.feed()
        finally:
            self._delivering = False

    def ask(self, strand: Strand) -> bool:
        """A strand waits for a record; True where it has been given one at once."""
        (self._gathering if strand.hand else self._asking)[strand] = None
        while strand.more:  # held back when it had its hands full
            queue = self._queues[strand.more.popleft()]
            if strand.hand and queue.waiting:
                self._give(strand, self._next_of(queue))
                return True
        self.feed()
        return bool(strand.inbox)

    def unask(self, strand: Strand) -> None:
        """A strand does not wait any more."""
        self._gathering.pop(strand, None)
        self._asking.pop(strand, None)

    def feed(self) -> None:
        """Give what there is to those who wait; start strands while there is more."""
        while not self.stopping:
            strand = next(iter(self._gathering or self._asking), None)
            if strand is None and (self._start is None or len(self.strands) >= self._concurrency):
                return
            parcel = heappop(self._ready) if self._ready else self._read(strand)
            if parcel is None:
                return
            if strand is None:
                strand = self._new_strand()
                assert self._start is not None
                self._start(strand)
            self._give(strand, parcel)

    def _give(self, strand: Strand, parcel: _Parcel) -> None:
        if parcel.lock is not None:
            queue = self._queues[parcel.lock]
            if queue.holder is not strand:
                queue.holder = strand
                strand.more.extend(parcel.lock for _ in queue.waiting)
        self.unask(strand)
        self.hand = True
        strand.give(parcel)

    def _read(self, strand: Strand | None) -> _Parcel | None:
        """Return the next record for a strand; what must wait for others is held back."""
        while True:
            batch = self._reading
            if batch is None:
                batch = self._open_batch()
                if batch is None:
                    return None
            topic = batch.topic
            ledger, room = self._ledgers[topic], self._rooms[topic]
            while self._at < len(batch):
                offset = batch.offset(self._at)
                if not self._may_read(ledger, offset, room):
                    return None
                at, self._at = self._at, self._at + 1
                if ledger.take(offset):
                    parcel = self._parcel(batch, at, offset)
                    if not self._hold_back(parcel, strand):
                        return parcel
            ledger.reach(batch.next_offset)
            self._reading = None

    def _open_batch(self) -> Batch | None:
        if not self.inbox:
            self.idle = True
            return None
        self.idle = False
        self._reading, self._at = self.inbox.popleft()
        size = self._reading.size_bytes
        self.inbox_bytes -= size
        if not self._delivering:  # else whoever delivers sees what remains
            self._taken(size)
        return self._reading

    def _may_read(self, ledger: Ledger, offset: int, room: int) -> bool:
        if self._held_back >= AHEAD * self._concurrency or self._ahead_bytes >= AHEAD_BYTES:
            return False
        if ledger.fits(offset, room):
            return True
        if self._gathering and len(self._gathering) + len(self._asking) == len(self.strands):
            min(self._gathering, key=Strand.first_number).cut_short()
        return False

    def _parcel(self, batch: Batch, index: int, offset: int) -> _Parcel:
        record = batch.record(index)
        order = self._ordering.of(record)
        self._numbers = number = self._numbers + 1
        return _Parcel(
            number, RecordBatch([record]), offset, order.lock, order.value, order.failure
        )

    def _hold_back(self, parcel: _Parcel, strand: Strand | None) -> bool:
        """Tell whether the record must wait for one of the same order."""
        lock = parcel.lock
        if lock is None:
            return False
        queue = self._queues.get(lock)
        if queue is None:
            self._queues[lock] = _Queue()
            return False
        holder = queue.holder
        if holder is not None and holder in self._gathering:  # it joins the rest of its group
            if holder is strand:
                return False
            self._give(holder, parcel)
            return True
        queue.waiting.append(parcel)
        self._held_back += 1
        self._ahead_bytes += parcel.batch.size_bytes
        if holder is not None:
            holder.more.append(lock)
        return True

    def _next_of(self, queue: _Queue) -> _Parcel:
        parcel = queue.waiting.popleft()
        self._held_back -= 1
        self._ahead_bytes -= parcel.batch.size_bytes
        return parcel

    # What settles

    def strand_settled(self, parcels: Sequence[_Parcel], keeps: AbstractSet[Hashable]) -> None:
        """These have settled, all at once.

        Args:
            keeps: orders that their strand holds for others.
        """
        if self.abandoned:  # its effects went nowhere: it has not happened
            return
        for parcel in parcels:
            self._ledgers[parcel.batch.topic].settle(parcel.offset)
        for lock in {parcel.lock for parcel in parcels} - keeps:
            if lock is None:
                continue
            queue = self._queues[lock]
            if queue.waiting:
                queue.holder = None
                heappush(self._ready, self._next_of(queue))
            else:
                del self._queues[lock]
        self.hand = any(map(len, self._ledgers.values()))
        self.renumber()
        self.feed()

    def settled_positions(self) -> dict[str, int]:
        """Return the lowest position that has not settled, by topic."""
        return {topic: ledger.position for topic, ledger in self._ledgers.items()}

    def settled_beyond(self) -> dict[str, Ranges]:
        """Return what has settled beyond it."""
        return {topic: ledger.ranges for topic, ledger in self._ledgers.items() if ledger.ranges}

    def count_settled(self) -> None:
        for strand in self.strands:
            strand.count_settled()

    # Its end

    def drain(self) -> None:
        super().drain()
        for strand in self.strands:
            strand.drain()

    def close(self) -> None:
        super().close()
        for strand in self.strands:
            strand.close()
        # They refer to each other, and shall be gone without the collector's help.
        self.strands = []
        self.own = {}
        self._start = self._reading = None
        for holding in (self._queues, self._ready, self._gathering, self._asking):
            holding.clear()

    def abandon(self) -> None:
        super().abandon()
        for strand in self.strands:
            strand.abandon()


def _nothing(size: int) -> None:
    """What a strand holds has been counted as taken."""
