"""The parts of the hot path, each set up alone: no broker, and no thread but the store's own.

A part is a context manager that gives a :class:`Bench`: what is timed, what follows it untimed,
and how many events (or records, or keys) it handles.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import trio

import trickle
from benchmarks.data import Flight, make_flights
from trickle.context import CURRENT, OUTLET, PORTION, Effect
from trickle.exceptions import TrickleError
from trickle.serializers import BoundCodec, codec_for
from trickle.stores.contract import Position, TableData, TableWrite, coalesced
from trickle.stores.lmdb import LmdbStore
from trickle.stores.memory import MemoryTable
from trickle.streams.lane import Lane
from trickle.streams.pace import CHUNK_MAX, Pace
from trickle.streams.stream import Stream
from trickle.tables import CacheLimits, Shard, Table
from trickle.transport.shared import RecordBatch
from trickle.types import Record, RecordMetadata
from trickle.utils.bridge import open_bridge

__all__ = ["PARTS", "Bench"]

BATCH = 1_000
KEYS = 1_000
UNBOUNDED = CacheLimits(entries=1 << 30)


class Bench(msgspec.Struct):
    """What is measured.

    Attributes:
        round: the work; awaited again and again.
        events: how many each round handles.
        after: what makes ready for the next round; not measured.
    """

    round: Callable[[], Awaitable[None]]
    events: int
    after: Callable[[], Awaitable[None]] | None = None


class Steady(Pace):
    """A pace that asks no clock: as for a lane that is quick, and the same under valgrind."""

    def __init__(self) -> None:
        super().__init__()
        self.size = CHUNK_MAX

    async def breathe(self) -> None:
        """Go on."""


class Sink:
    """The settlement of a lane on the bench: it keeps nothing, and ends the lane at its end."""

    chunk_max = 1 << 30
    crowded = False

    def __init__(self) -> None:
        self.events = 0
        self.batches = 0
        self.fresh: list[Effect] = []

    def published(self) -> None:
        """Drop them, a portion at a time."""
        if len(self.fresh) >= PORTION:
            self.fresh.clear()

    def settled(self, lane: Lane, events: int) -> None:
        """Count them."""
        del lane
        self.events += events

    def handled(self, lane: Lane, timestamp_ms: int) -> None:
        """Let the lane end behind the last batch."""
        del timestamp_ms
        self.batches -= 1
        if not self.batches:
            lane.drain()

    def after(self, calls: list[Callable[[], Awaitable[object] | object]]) -> None:
        """Drop them."""

    async def room(self, lane: Lane) -> None:
        """There is always room."""

    def busy(self, lane: Lane) -> None:
        """Nobody asks."""

    def dry(self, lane: Lane) -> None:
        """Nobody asks."""


class WayOut:
    """Knows what every topic takes, and sends nothing."""

    def bounds(self, topic: str) -> tuple[int | None, int | None]:
        """Return a partition count, and a broker's usual limit."""
        del topic
        return 4, 1_048_588

    async def send(self, effect: Effect) -> RecordMetadata:
        """Refuse: only what happens inside events is measured."""
        raise NotImplementedError(effect)

    def send_nowait(self, effect: Effect) -> None:
        """Likewise."""
        raise NotImplementedError(effect)

    async def send_all(self, effects: Iterable[Effect]) -> int:
        """Likewise."""
        raise NotImplementedError(effects)


def bind(kind: Any) -> BoundCodec:
    """Return the codec that a topic with values of this type has."""
    return codec_for(kind, None, what="values")


async def _refuse(lane: Lane, record: Record, error: TrickleError) -> None:
    raise error


def records(values: list[bytes], size: int = BATCH) -> list[RecordBatch]:
    """Make batches of records whose keys are their values."""
    made = [Record("t", 0, offset, 0, value, value, ()) for offset, value in enumerate(values)]
    return [RecordBatch(made[at : at + size]) for at in range(0, len(made), size)]


class Agent:
    """Runs a function over all batches, in a fresh lane, as an agent would."""

    def __init__(
        self,
        batches: list[RecordBatch],
        codec: BoundCodec,
        work: Callable[[Stream[Any]], Awaitable[None]],
    ) -> None:
        self.batches = batches
        self.events = sum(len(batch) for batch in batches)
        self._codec = codec
        self._work = work
        self.shards: dict[Any, Any] = {}

    async def run(self) -> None:
        """Handle all events."""
        sink = Sink()
        sink.batches = len(self.batches)
        lane = Lane(
            "bench", 0, shards=self.shards, positions={"t": 0}, codecs={"t": self._codec},
            settlement=sink, refuse=_refuse, pace=Steady(), taken=_nothing,
        )  # fmt: skip
        CURRENT.set(lane)
        for batch in self.batches:
            lane.deliver(batch)
        await self._work(Stream(lane, {"t": self._codec}))
        assert sink.events == self.events


def _nothing(size: int) -> None:
    del size


async def passing(stream: Stream[Any]) -> None:
    """An agent that does nothing."""
    async for _ in stream:
        pass


def keys(count: int, distinct: int) -> list[bytes]:
    """Make keys that come again and again, or never."""
    return [b"key%06d" % (number % distinct) for number in range(count)]


@asynccontextmanager
async def decode(size: int) -> AsyncGenerator[Bench]:
    """JSON of 160 bytes into a Struct."""
    codec = bind(Flight)
    raw = [value for _, value in make_flights(BATCH)]

    async def run() -> None:
        for _ in range(size // BATCH):
            list(map(codec.decode_fast, raw))

    yield Bench(run, size // BATCH * BATCH)


@asynccontextmanager
async def settle(size: int) -> AsyncGenerator[Bench]:
    """An event taken and settled, nothing done."""
    agent = Agent(records(keys(size, KEYS)), bind(bytes), passing)
    yield Bench(agent.run, agent.events)


@asynccontextmanager
async def effect(size: int) -> AsyncGenerator[Bench]:
    """An event that sends a flight: encoded, staged, settled."""
    app = trickle.App("bench", broker="memory://bench")
    out = app.topic("out", key=bytes, value=Flight)
    flight = msgspec.json.decode(next(make_flights(1))[1], type=Flight)

    async def work(stream: Stream[bytes]) -> None:
        async for key in stream:
            out.send_nowait(flight, key=key)

    agent = Agent(records(keys(size, KEYS)), bind(bytes), work)
    OUTLET.set(WayOut())
    yield Bench(agent.run, agent.events)


@asynccontextmanager
async def hand_over(size: int) -> AsyncGenerator[Bench]:
    """A batch of one record, delivered and taken."""
    agent = Agent(records(keys(size // 4, KEYS), 1), bind(bytes), passing)
    yield Bench(agent.run, agent.events)


@asynccontextmanager
async def hop(size: int) -> AsyncGenerator[Bench]:
    """A call into an owner thread and back."""
    count = size // 40
    async with open_bridge("bench") as bridge:

        async def run() -> None:
            for _ in range(count):
                await bridge.call(int)

        yield Bench(run, count)


class Counting:
    """An agent that writes a table, and what commits and stores its changes meanwhile."""

    def __init__(
        self,
        batches: list[RecordBatch],
        work: Callable[[Any, Stream[Any]], Awaitable[None]],
        value: Any,
        default: Callable[[], Any],
        data: Callable[[], TableData] = MemoryTable,
        limits: CacheLimits = UNBOUNDED,
    ) -> None:
        self.table: Table[str, Any] = Table(
            "t", app_id="bench", key=str, value=value, default=default
        )
        self._data = data
        self._limits = limits
        self.shard = self._shard()
        self.work = work
        self.agent = Agent(batches, bind(str), self._handle)
        self.agent.shards = {self.table: self.shard}

    async def _handle(self, stream: Stream[Any]) -> None:
        await self.work(self.table, stream)

    def _shard(self) -> Shard[str, Any]:
        table = self.table
        return Shard(
            "t", 0, 1, table.keys_shape, table.values_shape, self._data(), limits=self._limits
        )

    def commit(self) -> list[tuple[bytes, bytes | None]]:
        """Commit and store; return what the changelog would hold."""
        changes = self.shard.snapshot()
        if changes is None:
            return []
        pairs = list(chain(*changes.encoded()))
        self.shard.committed(1)
        stored = self.shard.begin_store()
        assert stored is not None
        if isinstance(self.shard.data, MemoryTable):
            self.shard.data.write(write_of(list(chain(*stored.encoded()))))
        self.shard.stored()
        return pairs

    async def committed(self) -> None:
        """Commit, between two rounds."""
        self.commit()

    async def afresh(self) -> None:
        """Begin with an empty table."""
        self.shard = self._shard()
        self.agent.shards = {self.table: self.shard}


def write_of(pairs: list[tuple[bytes, bytes | None]]) -> TableWrite:
    return TableWrite(table="t", position=Position("id", 1), changes=coalesced(pairs))


async def count(table: Any, stream: Stream[Any]) -> None:
    async for key in stream:
        table[key] += 1


async def count_and_sum(table: Any, stream: Stream[Any]) -> None:
    async for key in stream:
        number, total = table[key]
        table[key] = (number + 1, total + 0.5)


async def append(table: Any, stream: Stream[Any]) -> None:
    async for key in stream:
        table[key].append(1)


async def look(table: Any, stream: Stream[Any]) -> None:
    async for key in stream:
        table.get(key)


@asynccontextmanager
async def table_write(size: int) -> AsyncGenerator[Bench]:
    """A count in a table, cached, with its event."""
    counting = Counting(records(keys(size, KEYS)), count, int, int)
    yield Bench(counting.agent.run, counting.agent.events, counting.committed)


@asynccontextmanager
async def table_tuple(size: int) -> AsyncGenerator[Bench]:
    """A count and a sum in a tuple, with its event."""
    work = Counting(records(keys(size, KEYS)), count_and_sum, tuple[int, float], lambda: (0, 0.0))
    yield Bench(work.agent.run, work.agent.events, work.committed)


@asynccontextmanager
async def table_list(size: int) -> AsyncGenerator[Bench]:
    """A list in a table, changed in place, with its event."""
    events = size // 4
    counting = Counting(records(keys(events, events // 10)), append, list[int], list)
    yield Bench(counting.agent.run, events, counting.afresh)


@asynccontextmanager
async def table_read(size: int) -> AsyncGenerator[Bench]:
    """A value read from a table, cached, with its event."""
    counting = Counting(records(keys(size, KEYS)), count, int, int)
    await counting.agent.run()
    counting.commit()
    counting.work = look
    yield Bench(counting.agent.run, counting.agent.events)


@asynccontextmanager
async def table_new(size: int) -> AsyncGenerator[Bench]:
    """A count of a key that is new each time, with its event."""
    counting = Counting(records(keys(size, size)), count, int, int)
    yield Bench(counting.agent.run, counting.agent.events, counting.afresh)


@asynccontextmanager
async def changelog(size: int) -> AsyncGenerator[Bench]:
    """A changed key from snapshot to stored, in memory."""
    counting = Counting(records(keys(size // 2, size // 2)), count, int, int)
    await counting.agent.run()

    async def run() -> None:
        counting.commit()

    yield Bench(run, counting.agent.events, counting.agent.run)


@asynccontextmanager
async def open_environment() -> AsyncGenerator[Any]:
    with tempfile.TemporaryDirectory(prefix="trickle-bench-") as directory:
        store = LmdbStore(Path(directory) / "tables")
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            environment = await store.open(1, 0, ["t"])
            try:
                yield environment
            finally:
                with trio.CancelScope(shield=True):
                    await environment.close()
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def lmdb_flush(size: int) -> AsyncGenerator[Bench]:
    """A changed key into LMDB, half of them new."""
    rounds: Iterator[int] = iter(range(1 << 30))
    async with open_environment() as environment:

        async def run() -> None:
            first = next(rounds) * size // 2
            pairs: list[tuple[bytes, bytes | None]] = [
                (b"key%08d" % number, b"1") for number in range(first, first + size)
            ]
            await environment.write([write_of(pairs)])

        yield Bench(run, size)


@asynccontextmanager
async def lmdb_read(size: int) -> AsyncGenerator[Bench]:
    """A value read from LMDB, with its event."""
    events = size // 2
    async with open_environment() as environment:
        pairs: list[tuple[bytes, bytes | None]] = [(key, b"1") for key in keys(events, events)]
        await environment.write([write_of(pairs)])
        counting = Counting(
            records(keys(events, events)), look, int, int, lambda: environment.tables["t"],
            CacheLimits(entries=KEYS),
        )  # fmt: skip
        yield Bench(counting.agent.run, events)


PARTS: dict[str, Callable[[int], AbstractAsyncContextManager[Bench]]] = {
    "decode": decode,
    "settle": settle,
    "effect": effect,
    "hand-over": hand_over,
    "hop": hop,
    "table-write": table_write,
    "table-tuple": table_tuple,
    "table-list": table_list,
    "table-read": table_read,
    "table-new": table_new,
    "changelog": changelog,
    "lmdb-flush": lmdb_flush,
    "lmdb-read": lmdb_read,
}
