"""What is committed in a table, asked from outside of any worker: for ``trickle get``.

A worker may run or not, here or elsewhere. So each partition is read from the store in the data
directory where there is one, which a worker may hold meanwhile, and from there on from the
changelog; without a store, from the changelog alone. Nothing is written anywhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import trio

from trickle.exceptions import RecoveryError, TopicError
from trickle.stores import stored_partition
from trickle.stores.contract import TableData, stored_key
from trickle.tables.recovery import changelog_pairs
from trickle.tables.recovery_plan import plan_recovery
from trickle.tables.table import Table
from trickle.transport.contract import TopicInfo, Transport, Watermarks
from trickle.types import TopicPartition

__all__ = ["Found", "find_key", "find_keys"]

_SCAN_CHUNK = 1000


class Found(NamedTuple):
    """One key of a table, with its committed value."""

    partition: int
    key: Any
    value: Any


async def find_key(
    transport: Transport,
    table: Table[Any, Any],
    key: Any,
    directory: Path | None,
    *,
    timeout: float = 20.0,
) -> Found | None:
    """Return a key's committed value, None where the table has no such key.

    Args:
        key: of the table's key type.
        directory: ``{data_dir}/{app}/tables``; None: the store is in memory.
        timeout: seconds without an answer after which it fails.

    Raises:
        EncodeError: the key is not of the table's type.
        TopicError: the table has no changelog.
        RecoveryError: the changelog gives no answer in time.
    """
    wanted = table.keys_shape.encode(table.keys_shape.mark(key))
    info = await _changelog(transport, table)
    home = table.partitioner(wanted, info.partitions)
    # The key's own partition first; another where it was written without a group_by.
    for partition in sorted(range(info.partitions), key=lambda number: number != home):
        view = _View(transport, table, info, partition, directory, timeout)
        value = await view.get(wanted)
        if value is not None:
            return Found(partition, key, table.values_shape.decode(value))
    return None


async def find_keys(
    transport: Transport, table: Table[Any, Any], directory: Path | None, *, timeout: float = 20.0
) -> AsyncGenerator[Found]:
    """Yield all keys of a table with their committed values, partition by partition.

    Without a store, a partition's values are in memory while they are yielded. The arguments and
    errors are those of :func:`find_key`.
    """
    info = await _changelog(transport, table)
    for partition in range(info.partitions):
        view = _View(transport, table, info, partition, directory, timeout)
        async with aclosing(view.pairs()) as pairs:
            async for key, value in pairs:
                yield Found(
                    partition, table.keys_shape.decode(key), table.values_shape.decode(value)
                )


async def _changelog(transport: Transport, table: Table[Any, Any]) -> TopicInfo:
    found = (await transport.admin.topics([table.changelog])).get(table.changelog)
    if found is None:
        raise TopicError(
            f"table {table.name!r} has no changelog {table.changelog!r} on {transport.url}: no "
            "worker of this app has run there yet; start one, or check broker="
        )
    return found


class _View:
    """One partition of a table: what is stored, under what the changelog says since."""

    def __init__(
        self,
        transport: Transport,
        table: Table[Any, Any],
        info: TopicInfo,
        partition: int,
        directory: Path | None,
        timeout: float,
    ) -> None:
        self._transport = transport
        self._table = table
        self._info = info
        self._at = TopicPartition(table.changelog, partition)
        self._directory = directory
        self._timeout = timeout

    async def get(self, key: bytes) -> bytes | None:
        async with self._stored() as (data, start, end):
            tail = await self._tail(start, end, key)
            if key in tail:
                return tail[key]
            return None if data is None else data.get(key)

    async def pairs(self) -> AsyncGenerator[tuple[bytes, bytes]]:
        """Yield all pairs, in the order of stored keys."""
        async with self._stored() as (data, start, end):
            tail = await self._tail(start, end)
            ours = sorted((stored_key(key), key) for key in tail)
            at = 0
            for key, value in _scan(data):
                order = stored_key(key)
                while at < len(ours) and ours[at][0] <= order:
                    changed = tail[ours[at][1]]
                    if changed is not None:
                        yield ours[at][1], changed
                    at += 1
                if key not in tail:
                    yield key, value
            for _, key in ours[at:]:
                changed = tail[key]
                if changed is not None:
                    yield key, changed

    async def _marks(self) -> Watermarks:
        return (await self._transport.admin.watermarks([self._at]))[self._at]

    @asynccontextmanager
    async def _stored(self) -> AsyncGenerator[tuple[TableData | None, int, int]]:
        """Open the store where it can be used, and tell from and to where the changelog goes on."""
        where = self._directory, self._info.partitions, self._at.partition, self._table.name
        store = stored_partition(*where)
        with nullcontext() if store is None else store.open() as data:
            marks = await self._marks()  # not before: a worker may store more meanwhile
            plan = plan_recovery(
                None if data is None else data.position, self._info.topic_id, marks, markers=True
            )
            usable = data is not None and data.position is not None and plan.rebuild is None
            yield (data if usable else None), plan.start, marks.high

    async def _tail(
        self, start: int, end: int, only: bytes | None = None
    ) -> dict[bytes, bytes | None]:
        """Return the last change of each key in the changelog from an offset on."""
        tail: dict[bytes, bytes | None] = {}
        if start >= end:
            return tail
        async with self._transport.reader({self._at: start}) as reader:
            while reader.positions()[self._at] < end:
                before = reader.positions()[self._at]
                with trio.move_on_after(self._timeout) as scope:
                    for batch in await reader.fetch():
                        pairs = changelog_pairs(batch)
                        tail.update(pair for pair in pairs if only is None or pair[0] == only)
                if scope.cancelled_caught:
                    raise RecoveryError(
                        f"table {self._table.name!r}, partition {self._at.partition}: the "
                        f"changelog gave nothing for {self._timeout:g} s, at offset {before:,} of "
                        f"{end:,}: is the broker well?"
                    )
        return tail


def _scan(data: TableData | None) -> Iterator[tuple[bytes, bytes]]:
    """Yield all pairs of a store, in short reads."""
    after: bytes | None = None
    while data is not None:
        chunk = data.scan(after, _SCAN_CHUNK)
        yield from chunk
        if len(chunk) < _SCAN_CHUNK:
            return
        after = chunk[-1][0]
