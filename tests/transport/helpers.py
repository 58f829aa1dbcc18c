"""What the contract suite says in every test: open a member, produce, read to the end.

Nothing here knows which driver it talks to.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, cast

import trio

from trickle.transport.batches import Batch
from trickle.transport.contract import (
    ConsumerClient,
    ConsumerOptions,
    ProducerClient,
    ProducerOptions,
    TopicSpec,
    Transport,
)
from trickle.types import Headers, Record, TopicPartition

__all__ = [
    "LIMIT",
    "QUIET",
    "Calls",
    "Joined",
    "Listener",
    "declared",
    "fetch_until",
    "joined",
    "produce",
    "read_all",
    "records_of",
    "sole_error",
    "transaction",
    "unique",
]

LIMIT = 60.0  # seconds that any one test may take on any broker
QUIET = 0.3  # seconds in which something must not happen

Partitions = frozenset[TopicPartition]


def unique(name: str) -> str:
    """Return a name that no other test uses, for the broker outlives the test."""
    return f"{name}-{uuid.uuid4().hex[:12]}"


async def declared(
    transport: Transport,
    partitions: int = 1,
    *,
    name: str = "topic",
    config: dict[str, str] | None = None,
) -> str:
    """Declare a topic of this test's own and return its name."""
    topic = unique(name)
    spec = TopicSpec(name=topic, partitions=partitions, config=config or {})
    await transport.admin.declare([spec])
    return topic


class Calls(list[tuple[str, str, Partitions]]):
    """The calls of a test's listeners: (name, call, partitions), in the order of their start."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = trio.Event()

    def end_one(self) -> None:
        """A call has ended."""
        self._ended.set()
        self._ended = trio.Event()

    async def wait(self) -> None:
        """Wait until the next call has ended."""
        await self._ended.wait()


class Listener:
    """Remembers the calls, and lets a test wait for them.

    Args:
        name: in ``calls``, which several listeners of a test may share.
        calls: where to remember them.
        on_revoked: run inside ``revoked``.
        on_assigned: run inside ``assigned``.
    """

    def __init__(
        self,
        name: str = "",
        calls: Calls | None = None,
        on_revoked: Callable[[Partitions], Awaitable[None]] | None = None,
        on_assigned: Callable[[Partitions], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self.calls = Calls() if calls is None else calls
        self.held: Partitions | None = None
        self._on_revoked = on_revoked
        self._on_assigned = on_assigned
        self._inside = False

    async def assigned(self, partitions: Partitions) -> None:
        """Remember; nothing may have been held."""
        await self._call("assigned", partitions, self._on_assigned, None)

    async def revoked(self, partitions: Partitions) -> None:
        """Remember; the whole assignment is revoked."""
        assert partitions == self.held
        await self._call("revoked", partitions, self._on_revoked, partitions)

    async def lost(self, partitions: Partitions) -> None:
        """Remember."""
        await self._call("lost", partitions, None, partitions)

    async def _call(
        self,
        call: str,
        partitions: Partitions,
        inside: Callable[[Partitions], Awaitable[None]] | None,
        held: Partitions | None,
    ) -> None:
        assert not self._inside, "the calls of a listener come one at a time"
        # A revocation of nothing may go untold.
        assert held is not None or not self.held, "what was assigned is revoked before the next"
        self._inside = True
        self.calls.append((self.name, call, partitions))
        try:
            if inside is not None:
                await inside(partitions)
            await trio.lowlevel.checkpoint()
        finally:
            self._inside = False
        self.held = partitions if call == "assigned" else None
        self.calls.end_one()

    async def until_held(self, count: int) -> Partitions:
        """Wait until exactly so many partitions are held, and return them."""
        while self.held is None or len(self.held) != count:
            await self.calls.wait()
        return self.held

    def count(self, call: str) -> int:
        """Return how often a call was made to this listener."""
        return sum(1 for name, made, _ in self.calls if (name, made) == (self.name, call))


class Joined(NamedTuple):
    """A member of a group, with its listener."""

    client: ConsumerClient
    listener: Listener


@asynccontextmanager
async def joined(
    transport: Transport, group: str, *topics: str, listener: Listener | None = None
) -> AsyncGenerator[Joined, None]:
    """Join a group."""
    listener = listener or Listener()
    options = ConsumerOptions(group=group, topics=topics, rebalance_timeout=30.0)
    async with transport.consumer(options, listener) as client:
        yield Joined(client, listener)


def transaction(transport: Transport, name: str, group: str | None = None):  # noqa: ANN201
    """Open a transactional producer."""
    options = ProducerOptions(transactional_id=name, group=group)
    return transport.producer(options)


async def produce(
    producer: ProducerClient,
    topic: str,
    values: Iterable[bytes | None],
    *,
    partition: int | None = 0,
    key: bytes | None = None,
    headers: Headers = (),
    watch: bool = False,
) -> None:
    """Hand records over, waiting for room where there is none."""
    for value in values:
        while not producer.produce(topic, partition, key, value, headers, None, watch=watch):
            await producer.drained()


async def read_all(
    transport: Transport, topic: str, partitions: int = 1, *, start: int = 0
) -> dict[int, list[Record]]:
    """Read what is committed, from an offset to the high watermark, by partition."""
    wanted = [TopicPartition(topic, partition) for partition in range(partitions)]
    marks = await transport.admin.watermarks(wanted)
    found: dict[int, list[Record]] = {partition: [] for partition in range(partitions)}
    async with transport.reader(dict.fromkeys(wanted, start)) as reader:
        while any(reader.positions()[p] < marks[p].high for p in wanted):
            for record in records_of(await reader.fetch()):
                found[record.partition].append(record)
    return found


def records_of(batches: Sequence[Batch]) -> list[Record]:
    """Return a fetch's records, having looked at what every batch promises."""
    seen = [(batch.topic, batch.partition) for batch in batches]
    assert len(seen) == len(set(seen)), "at most one batch a partition"
    return list(itertools.chain.from_iterable(map(_checked, batches)))


def _checked(batch: Batch) -> list[Record]:
    assert len(batch) > 0
    records = [batch.record(index) for index in range(len(batch))]
    assert batch.values() == [record.value for record in records]
    assert batch.keys() == [record.key for record in records]
    assert [batch.offset(index) for index in range(len(batch))] == [r.offset for r in records]
    assert [batch.timestamp_ms(i) for i in range(len(batch))] == [r.timestamp_ms for r in records]
    assert [*batch.timestamps_ms(1, len(batch))] == [r.timestamp_ms for r in records[1:]]
    assert {(record.topic, record.partition) for record in records} == {
        (batch.topic, batch.partition)
    }
    offsets = [record.offset for record in records]
    assert offsets == sorted(set(offsets))
    assert batch.next_offset > offsets[-1]
    assert batch.size_bytes >= sum(len(r.key or b"") + len(r.value or b"") for r in records)
    return records


def sole_error(error: BaseException) -> BaseException:
    """Return the one error in a group of one, however deep."""
    while isinstance(error, BaseExceptionGroup):
        inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
        assert len(inner) == 1
        error = inner[0]
    return error


async def fetch_until(
    client: ConsumerClient,
    count: int,
    positions: dict[TopicPartition, int] | None = None,
) -> list[Record]:
    """Fetch until so many records have come, dropping those below the positions, as lanes do."""
    positions = {} if positions is None else positions
    found: list[Record] = []
    while len(found) < count:
        for record in records_of(await client.fetch()):
            at = TopicPartition(record.topic, record.partition)
            if record.offset >= positions.get(at, 0):
                found.append(record)
                positions[at] = record.offset + 1
    return found
