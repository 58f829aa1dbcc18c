"""A standby's environment, and how far its changelogs have been read."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
import trio

from trickle.stores.contract import Environment, Position, TableWrite, coalesced
from trickle.tables.recovery_plan import plan_recovery
from trickle.tables.standby_plan import Place
from trickle.transport.batches import Batch
from trickle.transport.contract import Watermarks
from trickle.types import TopicPartition

__all__ = ["Kept", "StandbyState"]

logger = logging.getLogger("trickle.tables")


class StandbyState(msgspec.Struct, frozen=True, kw_only=True):
    """One partition number that is kept as a standby.

    Attributes:
        count: the partition count.
        partition: the number.
        tables: by name.
        records: read since it was opened.
        lag: offsets from here to the ends of the changelogs; None before it was measured.
    """

    count: int
    partition: int
    tables: tuple[str, ...]
    records: int
    lag: int | None


class Kept:
    """An open environment that is not ours to use, and how far its changelogs have been read."""

    def __init__(
        self, place: Place, environment: Environment, changelogs: Mapping[TopicPartition, str]
    ) -> None:
        self.place = place
        self.environment = environment
        self.changelogs = changelogs
        self.topic_ids: dict[TopicPartition, str] = {}
        self.positions: dict[TopicPartition, int] = {}  # of what was read
        self.checked: dict[TopicPartition, int] = {}  # the same, when it was looked at last
        self.goal: dict[TopicPartition, int] = {}
        self.clear: set[TopicPartition] = set()
        self.unproven: set[TopicPartition] = set()
        self.pending: dict[TopicPartition, list[tuple[bytes, bytes | None]]] = {}
        self.records = 0
        self.lag: int | None = None
        self.since = trio.current_time()
        self.caught_up = False
        self.writing = trio.Lock()

    def start(self, at: TopicPartition, topic_id: str, marks: Watermarks, *, markers: bool) -> None:
        """Decide from where one of its changelogs is read."""
        table = self.changelogs[at]
        position = self.environment.tables[table].position
        plan = plan_recovery(position, topic_id, marks, markers=markers, follows=True)
        self.topic_ids[at] = topic_id
        self.positions[at] = self.checked[at] = plan.start
        self.goal[at] = plan.end
        if plan.proof:
            self.unproven.add(at)
        if plan.rebuild is not None:
            self.rebuild(at, plan.start, plan.rebuild)

    def rebuild(self, at: TopicPartition, start: int, why: str) -> None:
        """Read a changelog from its beginning, into an empty table."""
        logger.warning(
            "standby of table %r, partition %d: what is stored cannot be used (%s): it is rebuilt "
            "from its changelog", self.changelogs[at], at.partition, why,
        )  # fmt: skip
        self.clear.add(at)
        self.unproven.discard(at)
        self.pending.pop(at, None)
        self.positions[at] = self.checked[at] = start

    def prove(self, at: TopicPartition, batch: Batch) -> None:
        """See whether a batch begins with the record that is stored and has to be there."""
        if at in self.unproven and batch.offset(0) == self.positions[at]:
            self.unproven.discard(at)

    def writes(self) -> list[TableWrite]:
        """Take what has been read and is not stored."""
        writes: list[TableWrite] = []
        for at, table in self.changelogs.items():
            if at in self.unproven:
                continue
            position = Position(self.topic_ids[at], self.positions[at])
            changes = coalesced(self.pending.pop(at, ()))
            clear = at in self.clear
            if changes or clear or position != self.environment.tables[table].position:
                writes.append(
                    TableWrite(table=table, position=position, changes=changes, clear=clear)
                )
        self.clear.clear()
        return writes

    def state(self) -> StandbyState:
        """Return a picture of it."""
        count, number = self.place
        tables = tuple(self.changelogs.values())
        return StandbyState(
            count=count, partition=number, tables=tables, records=self.records, lag=self.lag
        )

    def __str__(self) -> str:
        return f"partition {self.place[1]} of {', '.join(self.changelogs.values())}"
