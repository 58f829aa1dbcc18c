"""Looks at topics and groups of the embedded log, and declares topics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

import trio

from trickle.exceptions import ConfigurationError, OffsetOutOfRange, TopicError
from trickle.transport.contract import CommittedOffset, TopicInfo, TopicSpec, Watermarks
from trickle.transport.embedded import log
from trickle.transport.embedded.environment import ReadTxn, WriteTxn
from trickle.transport.embedded.format import Head
from trickle.transport.embedded.group import look_at_group
from trickle.transport.embedded.hub import Hub
from trickle.types import Places, TopicPartition
from trickle.utils.names import check_name

__all__ = ["LogAdmin", "check_identity"]

T = TypeVar("T")

PARTITIONS_MAX = 10_000


IDENTITY_BYTES_MAX = 400


def check_identity(transactional_id: str) -> None:
    """Check that a transactional id can be stored.

    Raises:
        ConfigurationError: it is empty or too long.
    """
    if not 1 <= len(transactional_id.encode(errors="replace")) <= IDENTITY_BYTES_MAX:
        raise ConfigurationError(
            f"transactional_id={transactional_id[:40]!r}… must have 1 to {IDENTITY_BYTES_MAX} bytes"
        )


class LogAdmin:
    """The administration of one log."""

    def __init__(self, hub: Hub, timeout: float) -> None:
        self._hub = hub
        self._timeout = timeout

    async def _write(self, change: Callable[[WriteTxn], T]) -> T:
        return await self._hub.writer.run(change, self._timeout)

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicInfo]:
        """Return the topics that exist, of those named, or all."""
        await trio.lowlevel.checkpoint()
        with self._hub.environment.read() as txn:
            found = log.topics(txn, names)
        return {
            topic.name: TopicInfo(
                name=topic.name,
                topic_id=topic.topic_id,
                partitions=topic.partitions,
                record_bytes_max=topic.record_bytes_max,
                compacting=topic.compacting,
            )
            for topic in found
        }

    async def declare(self, specs: Sequence[TopicSpec]) -> None:
        """Create the topics that do not exist.

        A topic has one partition unless its spec says otherwise. Of ``config`` the log knows
        ``cleanup.policy``, ``retention.ms``, ``max.message.bytes`` and ``delete.retention.ms``;
        there is one replica, on this machine, whatever ``replicas`` asks for.
        """
        for spec in specs:
            try:
                check_name(spec.name, what="a topic's name")
            except ConfigurationError as error:
                raise TopicError(f"topic {spec.name!r} cannot be declared: {error}") from error
            if spec.partitions is not None and not 1 <= spec.partitions <= PARTITIONS_MAX:
                raise TopicError(
                    f"topic {spec.name!r}: partitions={spec.partitions} is not between 1 and "
                    f"{PARTITIONS_MAX}"
                )

        with self._hub.environment.read() as txn:
            missing = [spec for spec in specs if log.topic(txn, spec.name) is None]

        def create(txn: WriteTxn) -> None:
            for spec in missing:
                log.create(txn, spec)

        if missing:
            await self._write(create)
        await trio.lowlevel.checkpoint()

    async def delete(self, names: Collection[str]) -> None:
        """Delete topics; missing ones are no error."""

        def drop(txn: WriteTxn) -> None:
            for name in names:
                log.drop(txn, name)

        await self._write(drop)

    async def delete_records(self, before: Mapping[TopicPartition, int]) -> None:
        """Move low watermarks up; -1 means up to the end. The records go bit by bit."""

        def move(txn: WriteTxn) -> None:
            for place, offset in before.items():
                number, head = self._head(txn, place)
                low = head.high if offset == -1 else offset
                if not 0 <= low <= head.high:
                    raise OffsetOutOfRange(
                        f"topic {place.topic!r}, partition {place.partition}: records before "
                        f"{offset} cannot be deleted, its end is {head.high}"
                    )
                moved = head._replace(low=max(low, head.low))
                log.set_head(txn, number, place.partition, moved)

        await self._write(move)

    def _head(self, txn: ReadTxn, place: TopicPartition) -> tuple[int, Head]:
        topic = log.topic(txn, place.topic)
        head = None if topic is None else log.head(txn, topic.number, place.partition)
        if topic is None or head is None:
            raise TopicError(
                f"topic {place.topic!r} does not exist in the embedded log in {self._hub.directory}"
                if topic is None
                else f"topic {place.topic!r} has no partition {place.partition}, but "
                f"{topic.partitions} of them"
            )
        return topic.number, head

    async def watermarks(
        self, partitions: Collection[TopicPartition], *, stable: bool = False
    ) -> Mapping[TopicPartition, Watermarks]:
        """Return low and high watermarks; all that is there is stable."""
        del stable
        await trio.lowlevel.checkpoint()
        with self._hub.environment.read() as txn:
            heads = {place: self._head(txn, place)[1] for place in partitions}
        return {place: Watermarks(head.low, head.high) for place, head in heads.items()}

    async def committed(
        self, group: str, partitions: Collection[TopicPartition], *, stable: bool = True
    ) -> Mapping[TopicPartition, CommittedOffset | None]:
        """Return the group's committed offsets; they are always stable here."""
        check_name(group, what="a consumer group's name")
        await trio.lowlevel.checkpoint()
        found: dict[TopicPartition, CommittedOffset | None] = {}
        with self._hub.environment.read() as txn:
            for place in partitions:
                topic = log.topic(txn, place.topic)
                found[place] = (
                    None
                    if topic is None
                    else log.committed(txn, topic.number, place.partition, group)
                )
        return found

    async def members(self, group: str) -> Mapping[str, frozenset[TopicPartition]]:
        """Return who is in a group and what each holds, by the files that they have locked."""
        check_name(group, what="a consumer group's name")
        await trio.lowlevel.checkpoint()
        found = look_at_group(self._hub.directory, group)
        with self._hub.environment.read() as txn:
            topics = log.topics(txn, {name for wanted, _ in found.values() for name in wanted})
        counts = {topic.name: topic.partitions for topic in topics}
        return {
            member: frozenset(
                TopicPartition(name, slot.number)
                for slot in slots
                for name in wanted
                if counts.get(name) == slot.of
            )
            for member, (wanted, slots) in found.items()
        }

    async def fence(
        self, transactional_id: str, *, groups: Collection[str] = (), places: Places = ()
    ) -> None:
        """Begin a new epoch of the id: whoever has it now cannot commit any more."""
        del groups, places  # what has ended has ended everywhere
        check_identity(transactional_id)
        await self._write(partial(log.new_epoch, transactional_id=transactional_id))
