"""The memory driver's face: one broker of this process as a Transport."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from trickle.transport.contract import (
    CommittedOffset,
    ConsumerOptions,
    ProducerOptions,
    RebalanceListener,
    TopicInfo,
    TopicSpec,
    TransportOptions,
    Watermarks,
)
from trickle.transport.memory.broker import MemoryBroker
from trickle.transport.memory.consumer import MemoryConsumer, MemoryReader
from trickle.transport.memory.producer import MemoryProducer
from trickle.types import Places, TopicPartition

__all__ = ["MemoryTransport", "open_transport"]


@asynccontextmanager
async def open_transport(
    url: str, options: TransportOptions
) -> AsyncGenerator[MemoryTransport, None]:
    """Open the process's broker of the URL's name; it and its topics stay when this ends.

    Of the options none applies: there is no client library, no thread and nothing to time out.
    """
    del options
    await trio.lowlevel.checkpoint()
    name = url.partition("://")[2]
    yield MemoryTransport(MemoryBroker.named(name), url)


class MemoryTransport:
    """A broker in memory, behind the contract of :mod:`trickle.transport.contract`."""

    def __init__(self, broker: MemoryBroker, url: str = "memory://") -> None:
        self.broker = broker
        self._url = url
        self._admin = MemoryAdmin(broker)

    @property
    def url(self) -> str:
        """The broker's URL."""
        return self._url

    @property
    def admin(self) -> MemoryAdmin:
        """Looks at topics and groups."""
        return self._admin

    @asynccontextmanager
    async def consumer(
        self, options: ConsumerOptions, listener: RebalanceListener
    ) -> AsyncGenerator[MemoryConsumer, None]:
        """Join a group; see :mod:`.consumer` for how it is left."""
        await trio.lowlevel.checkpoint()
        client = MemoryConsumer(self.broker, options, listener)
        try:
            failure: Exception | None = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.attend)
                try:
                    yield client
                except Exception as error:  # noqa: BLE001 - raised below, not in a group
                    failure = error
                    nursery.cancel_scope.cancel()
                else:
                    client.leave()
            if failure is not None:
                raise failure
        finally:
            client.drop()

    @asynccontextmanager
    async def producer(self, options: ProducerOptions) -> AsyncGenerator[MemoryProducer, None]:
        """Open a producer; what was not committed at the end is dropped."""
        await trio.lowlevel.checkpoint()
        client = MemoryProducer(self.broker, options)
        try:
            failure: Exception | None = None
            async with trio.open_nursery() as nursery:
                if options.transactional_id is None:
                    nursery.start_soon(client.run)
                try:
                    yield client
                except Exception as error:  # noqa: BLE001 - raised below, not in a group
                    failure = error
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure
        finally:
            client.close()

    @asynccontextmanager
    async def reader(
        self, positions: Mapping[TopicPartition, int], *, committed_only: bool = True
    ) -> AsyncGenerator[MemoryReader, None]:
        """Read partitions; what is not committed is nowhere yet, so ``committed_only`` is too."""
        del committed_only
        await trio.lowlevel.checkpoint()
        reader = MemoryReader(self.broker, positions)
        try:
            yield reader
        finally:
            reader.close()


class MemoryAdmin:
    """Looks at topics and groups, and declares topics."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicInfo]:
        """Return the topics that exist, of those named, or all."""
        await trio.lowlevel.checkpoint()
        self._broker.check_available()
        topics = self._broker.topics()
        return {
            name: topic.info() for name, topic in topics.items() if names is None or name in names
        }

    async def declare(self, specs: Sequence[TopicSpec]) -> None:
        """Create the topics that do not exist."""
        await trio.lowlevel.checkpoint()
        self._broker.check_available()
        for spec in specs:
            self._broker.declare(spec)

    async def delete(self, names: Collection[str]) -> None:
        """Delete topics."""
        await trio.lowlevel.checkpoint()
        self._broker.check_available()
        for name in names:
            self._broker.delete(name)

    async def delete_records(self, before: Mapping[TopicPartition, int]) -> None:
        """Delete the records below the given offsets."""
        await trio.lowlevel.checkpoint()
        self._broker.check_available()
        for partition, offset in before.items():
            log = self._broker.log(partition)
            self._broker.check_position(log, max(offset, log.low))
            log.delete_before(offset)
            self._broker.topic(partition.topic).wake()
        self._broker.notify()

    async def watermarks(
        self, partitions: Collection[TopicPartition], *, stable: bool = False
    ) -> Mapping[TopicPartition, Watermarks]:
        """Return low and high watermarks; all is stable, but for what is forgotten."""
        await trio.lowlevel.checkpoint()
        self._broker.check_available()
        logs = {partition: self._broker.log(partition) for partition in partitions}
        forgotten = self._broker.forgotten if stable else {}
        return {
            partition: Watermarks(log.low, min(log.high, forgotten.get(partition, log.high)))
            for partition, log in logs.items()
        }

    async def committed(
        self, group: str, partitions: Collection[TopicPartition], *, stable: bool = True
    ) -> Mapping[TopicPartition, CommittedOffset | None]:
        """Return the group's committed offsets."""
        await trio.lowlevel.checkpoint()
        self._broker.check_available()
        found = self._broker.group(group)
        while stable and not found.pending.keys().isdisjoint(partitions):
            await self._broker.wait_changed()
        return {partition: found.offsets.get(partition) for partition in partitions}

    async def members(self, group: str) -> Mapping[str, frozenset[TopicPartition]]:
        """Return the members of a group, and what each holds."""
        await trio.lowlevel.checkpoint()
        self._broker.check_available()
        members = self._broker.group(group).members
        return {name: member.assignment for name, member in members.items()}

    async def fence(
        self, transactional_id: str, *, groups: Collection[str] = (), places: Places = ()
    ) -> None:
        """End a producer of this id; only a test leaves open what it did (``forgotten``)."""
        del groups  # what has ended has ended there
        await trio.lowlevel.checkpoint()
        self._broker.check_available()
        self._broker.open_epoch(transactional_id)
        for partition in places:
            self._broker.forgotten.pop(partition, None)
