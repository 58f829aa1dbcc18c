"""Reads given partitions of the embedded log, outside any group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from trickle.exceptions import OffsetOutOfRange, TopicError
from trickle.transport.batches import Batch
from trickle.transport.embedded import log
from trickle.transport.embedded.hub import Hub
from trickle.transport.embedded.wake import POLL
from trickle.types import TopicPartition

__all__ = ["LogReader"]


class LogReader:
    """Reads from positions on; ends with its opener's block."""

    def __init__(self, hub: Hub, positions: Mapping[TopicPartition, int]) -> None:
        self._hub = hub
        self._positions = dict(positions)
        self._numbers = {place: hub.topic(place.topic).number for place in positions}
        self._want = log.Want(hub.directory)

    def positions(self) -> Mapping[TopicPartition, int]:
        """Return the positions behind all that was returned."""
        return dict(self._positions)

    async def fetch(self) -> Sequence[Batch]:
        """Wait until there are records, or a position has moved."""
        await trio.lowlevel.checkpoint()
        while True:
            version = self._hub.wake.version
            before = dict(self._positions)
            batches = self._read()
            if batches or self._positions != before:
                return batches
            self._hub.environment.check_directory()
            await self._hub.wake.wait(version, POLL)

    def _read(self) -> list[Batch]:
        batches: list[Batch] = []
        with self._hub.environment.read() as txn:
            for place, position in self._positions.items():
                number = self._numbers[place]
                head = log.head(txn, number, place.partition)
                if head is None:
                    raise TopicError(
                        f"topic {place.topic!r} was deleted, or has no partition "
                        f"{place.partition}, while it was read"
                    )
                if position > head.high:
                    raise OffsetOutOfRange(
                        f"topic {place.topic!r}, partition {place.partition}: position {position} "
                        f"lies behind its end, {head.high}"
                    )
                if position == head.high:
                    continue
                found = log.read(
                    txn, number, place.topic, place.partition, position, head, self._want
                )
                self._positions[place] = found.position
                if found.batch is not None:
                    batches.append(found.batch)
        return batches
