"""Views: what is committed in all tables, for a Run that holds no partition.

A command of the app's reads its tables, whether a worker runs or not, here or elsewhere. So a view
is a partition's store in the data directory, where there is one, under what the changelog has said
since; without a store it is the changelog alone. It is up to date when the Run is entered, and
follows the changelogs from then on. Nothing is written anywhere.

The store is a worker's, who may come and go: it is opened for each read, and never kept. Where
another one has taken its place meanwhile, the changelog was not read from where that one ends: the
read fails, and says so.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import trio

from trickle.config import Settings
from trickle.context import Turn
from trickle.exceptions import RecoveryError, StoreError
from trickle.service import Service
from trickle.stores import stored_partition
from trickle.stores.contract import Position, TableData
from trickle.stores.memory import MemoryTable
from trickle.tables.changes import in_order
from trickle.tables.recovery import changelog_pairs
from trickle.tables.recovery_plan import plan_recovery
from trickle.tables.shapes import ABSENT
from trickle.tables.table import Committed, Table, foreign_table
from trickle.transport.contract import Reader, TopicInfo, Transport, Watermarks
from trickle.types import TopicPartition

__all__ = ["View", "Views"]


class View:
    """One partition of a table, to read only."""

    def __init__(
        self, table: Table[Any, Any], directory: Path | None, partitions: int, partition: int
    ) -> None:
        self._table = table
        self._partitions = partitions
        self._partition = partition
        self._store = stored_partition(directory, partitions, partition, table.name)
        self._from: Position | None = None  # where the tail begins; None: there is no store below
        self.tail: dict[bytes, bytes | None] = {}

    @property
    def partition(self) -> int:
        """Its number."""
        return self._partition

    @property
    def partitions(self) -> int:
        """How many the table has."""
        return self._partitions

    def start(self, topic_id: str, marks: Watermarks) -> int:
        """Return the offset from which the changelog goes on behind the store."""
        with self._stored() as data:
            if data.position is not None:  # a worker may have stored more since they were asked for
                marks = marks._replace(high=max(marks.high, data.position.offset))
            plan = plan_recovery(data.position, topic_id, marks, markers=True)
            if plan.rebuild is None:
                self._from = data.position
            return plan.start

    @contextmanager
    def _stored(self) -> Generator[TableData]:
        with nullcontext() if self._store is None else self._store.open() as data:
            yield MemoryTable() if data is None else data

    @contextmanager
    def _base(self) -> Generator[TableData]:
        """What lies below the tail.

        Raises:
            StoreError: it is another store than it was.
        """
        if self._from is None:
            yield MemoryTable()
            return
        with self._stored() as data:
            now = data.position
            if now is None or now.topic_id != self._from.topic_id or now.offset < self._from.offset:
                raise StoreError(
                    f"table {self._table.name!r}: the store of partition {self._partition} was "
                    "replaced, or cannot be opened any more, since it was read first: run the "
                    "command, or enter app.client(), once more"
                )
            yield data

    def read_committed(self, key: Any) -> Any:
        """Return a key's value, ABSENT where there is none."""
        keys = self._table.keys_shape
        wanted = keys.encode(keys.mark(key))
        if wanted in self.tail:
            found = self.tail[wanted]
        else:
            with self._base() as data:
                found = data.get(wanted)
        return ABSENT if found is None else self._table.values_shape.decode(found)

    @property
    def size_committed(self) -> int:
        """The number of keys."""
        with self._base() as data:
            count = data.count()
            for key, value in self.tail.items():
                count += (value is not None) - (data.get(key) is not None)
            return count

    def marks(self, turn: Turn | None) -> Iterator[Any]:
        """Yield the marks of all keys, in the order of stored keys."""
        del turn
        keys = self._table.keys_shape
        tail = {keys.mark_of(key): value for key, value in self.tail.items()}
        with self._base() as data:
            found = [
                mark
                for mark, stored in in_order(data, keys, tail)
                if tail.get(mark, stored) is not None
            ]
        yield from found


class Views(Service):
    """The tables of a Run without agents; a Holder (see :mod:`.table`).

    Args:
        transport: where the changelogs are.
        tables: all tables of the app.
        settings: where the store is, and how long an answer may take.
    """

    name = "Views"

    def __init__(
        self,
        transport: Transport,
        tables: Sequence[Table[Any, Any]],
        settings: Settings,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._tables = tables
        on_disk = settings.store == "lmdb://"
        self._directory = settings.data_dir / settings.id / "tables" if on_disk else None
        self._timeout = settings.broker_timeout
        self._views: dict[Table[Any, Any], list[View]] = {}

    def shards_of(self, table: Table[Any, Any]) -> Sequence[Committed]:
        """Return the partitions of a table.

        Raises:
            UsageError: it is another app's.
        """
        if table not in self._views:
            raise foreign_table(table)
        return self._views[table]

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        """Read the changelogs to their ends, then follow them."""
        admin = self._transport.admin
        infos = await admin.topics([table.changelog for table in self._tables])
        views: dict[TopicPartition, View] = {}
        for table in self._tables:
            # Without a changelog no worker has ever run: the table is empty.
            count = infos[table.changelog].partitions if table.changelog in infos else 0
            own = [View(table, self._directory, count or 1, number) for number in range(count or 1)]
            self._views[table] = own
            if count:
                views.update(
                    {TopicPartition(table.changelog, view.partition): view for view in own}
                )
        if views:
            await self._follow(views, infos, task_status)
        else:
            task_status.started(self)
            await trio.sleep_forever()

    async def _follow(
        self,
        views: Mapping[TopicPartition, View],
        infos: Mapping[str, TopicInfo],
        task_status: trio.TaskStatus[Any],
    ) -> None:
        marks = await self._transport.admin.watermarks(list(views))
        starts = {at: view.start(infos[at.topic].topic_id, marks[at]) for at, view in views.items()}
        async with self._transport.reader(starts) as reader:
            while behind := [at for at in views if reader.positions()[at] < marks[at].high]:
                with trio.move_on_after(self._timeout) as scope:
                    await self._take(reader, views)
                if scope.cancelled_caught:
                    raise RecoveryError(
                        f"the changelog {behind[0].topic!r}, partition {behind[0].partition}, gave "
                        f"nothing for {self._timeout:g} s, at offset "
                        f"{reader.positions()[behind[0]]:,} of {marks[behind[0]].high:,}: is the "
                        "broker well?"
                    )
            task_status.started(self)
            while True:
                await self._take(reader, views)

    @staticmethod
    async def _take(reader: Reader, views: Mapping[TopicPartition, View]) -> None:
        for batch in await reader.fetch():
            view = views[TopicPartition(batch.topic, batch.partition)]
            view.tail.update(changelog_pairs(batch))
