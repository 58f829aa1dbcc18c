"""Consumer: everything about consumption but the fetching.

It owns the membership in the group: the client that the driver gives, its rebalances, which go on
to the conductor, and the positions: what was committed for each partition, and by whom, and what
may be committed next.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Any

import trio
from msgspec import structs

from trickle.drift import Drift
from trickle.exceptions import (
    BrokerUnavailable,
    CommitFailed,
    OffsetOutOfRange,
    TransportError,
)
from trickle.forgotten import Forgotten
from trickle.ledger import Ranges
from trickle.membership import Membership
from trickle.namesakes import Namesakes
from trickle.positions import Positions, is_end, read_positions
from trickle.sensors import Sensor
from trickle.service import Service
from trickle.transport.contract import (
    CommittedOffset,
    ConsumerClient,
    ConsumerOptions,
    Member,
    RebalanceListener,
    TopicInfo,
    Transport,
    Watermarks,
)
from trickle.types import TopicPartition

__all__ = ["Consumer", "LateListener"]

logger = logging.getLogger("trickle.consumer")

BEGINNING_TRIES = 20
BEGINNING_PAUSE_S = 0.1

LAG_INTERVAL_S = 10.0


class Consumer(Service):
    """A member of the app's consumer group.

    Args:
        transport: the broker.
        options: how the group is joined.
        listener: told of each change of the assignment: the conductor.
        committer_id: names this worker in the offsets' metadata: its transactional id, or empty
            under at-least-once, where nobody needs to be fenced.
        first_position: where to start a partition without a committed offset.
        out_of_range: what to do about a committed offset that the topic does not hold.
        sensor: told of the lag.
        topics: all of the app's, as they were at the start.
        program: what this program is among those of its app's id.
        owned: topics of trickle's own, whose records nobody needs once they are committed.
        changelogs: of the app's tables.
        forgotten: ends transactions whose end the broker has lost.

    Attributes:
        missing: topics that are sent to alone, and are gone.
    """

    name = "Consumer"

    def __init__(
        self,
        transport: Transport,
        options: ConsumerOptions,
        listener: RebalanceListener,
        *,
        committer_id: str,
        first_position: str,
        out_of_range: str,
        sensor: Sensor,
        topics: Mapping[str, TopicInfo],
        forgotten: Forgotten,
        program: str = "",
        owned: frozenset[str] = frozenset(),
        changelogs: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self._transport = transport
        self._options = options
        self._listener = listener
        self.committer_id = committer_id
        self._first_position = first_position
        self._out_of_range = out_of_range
        self._sensor = sensor
        self._topics = topics
        self._forgotten = forgotten
        self._program = program
        self._owned = owned
        self._changelogs = changelogs
        self.missing: set[str] = set()
        self._purged: dict[TopicPartition, int] = {}
        self._client: ConsumerClient | None = None
        self._committed: dict[TopicPartition, Positions] = {}
        self._fenced: dict[TopicPartition, str] = {}  # whom we have ended since we hold it

    @property
    def client(self) -> ConsumerClient:
        """The driver's client.

        Raises:
            TransportError: the group has not been joined yet.
        """
        if self._client is None:
            raise TransportError("the group has not been joined yet: the worker is starting")
        return self._client

    @property
    def topics(self) -> Collection[str]:
        """Those that are consumed."""
        return self._options.topics

    @property
    def may_move(self) -> bool:
        """Whether a position that the topic does not hold may be given up."""
        return self._out_of_range != "stop"

    @property
    def member(self) -> Member:
        """The membership as of now, for a commit."""
        return self.client.member

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        async with self._transport.consumer(self._options, self) as client:
            self._client = client
            task_status.started()
            counts = {name: self._topics[name].partitions for name in self._options.topics}
            admin, topics = self._transport.admin, self._options.topics
            namesakes = Namesakes(admin, self._options.group, self._program, counts)
            membership = Membership(admin, self._options, client, namesakes)
            drift = Drift(admin, self._topics, topics, self._changelogs, self.missing)
            while True:
                before = trio.current_time()
                await trio.sleep(LAG_INTERVAL_S)
                if trio.current_time() - before > 2 * LAG_INTERVAL_S:
                    membership.away = True  # this process stood still
                try:
                    await membership.look(self._committed)
                    await drift.look()
                    await self._measure_lag()
                    await self._purge()
                except BrokerUnavailable as error:
                    logger.info("lag and repartition topics wait for the broker: %s", error)

    async def _measure_lag(self) -> None:
        """Compare the committed positions with the ends of their partitions."""
        committed = self.positions()
        marks = await self._transport.admin.watermarks(committed.keys())
        self._sensor.lag(
            {
                partition: max(0, marks[partition].high - position.offset)
                for partition, position in committed.items()
                if partition in marks
            }
        )

    async def _purge(self) -> None:
        """Delete what all agents have handled of the repartition topics (as Kafka Streams does).

        The broker is asked: a commit that it has acknowledged and forgotten runs again.
        """
        owned = [
            partition
            for partition, position in self.positions().items()
            if partition.topic in self._owned and position.offset > self._purged.get(partition, 0)
        ]
        if not owned:
            return
        committed = await self._transport.admin.committed(self._options.group, owned, stable=True)
        before = {
            partition: found.offset
            for partition, found in committed.items()
            if found is not None and found.offset > self._purged.get(partition, 0)
        }
        if before:
            await self._transport.admin.delete_records(before)
            self._purged.update(before)

    # Rebalances, passed on in order

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """The driver gave partitions."""
        await self._listener.assigned(partitions)

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """The driver takes partitions when this returns."""
        await self._listener.revoked(partitions)
        self._forget(partitions)

    async def lost(self, partitions: frozenset[TopicPartition]) -> None:
        """The driver has lost partitions."""
        await self._listener.lost(partitions)
        self._forget(partitions)

    def _forget(self, partitions: frozenset[TopicPartition]) -> None:
        for partition in partitions:
            self._committed.pop(partition, None)
            self._fenced.pop(partition, None)

    # Positions

    async def recall(
        self, partitions: frozenset[TopicPartition], changelogs: Collection[TopicPartition] = ()
    ) -> tuple[Mapping[TopicPartition, Positions], Mapping[TopicPartition, CommittedOffset]]:
        """Find where the partitions stand: what is committed, or the first position.

        And where changelogs ended with the last commits under at-least-once, as committed: in one
        answer, for a commit that lands between two is in the one and not in the other. What an
        agent reads is left out: its offset is the agent's.

        A committer that gave a partition back uncleanly is fenced first: its transaction, if one
        is open, would hold the committed offset back until it times out. Once is enough for as long
        as we hold the partition, as no later transaction of its can hold our offsets back; twice
        would do harm, for it may be alive: two that fence each other at each new generation of the
        other, before either has put its own name on what it holds, never come to an end.

        Raises:
            OffsetOutOfRange: a committed offset that the topic does not hold (any more).
        """
        if not partitions:
            return {}, {}
        every = partitions | {at for at in changelogs if at.topic not in self.topics}
        admin = self._transport.admin
        if self.committer_id:
            latest = await admin.committed(self._options.group, partitions, stable=False)
            unreleased = self._unreleased(latest)
            for committer in sorted(set(unreleased.values())):
                logger.info("ending what %s may have left open", committer)
                await admin.fence(committer)
                self._forgotten.suspect(committer)
                self._fenced |= {at: name for at, name in unreleased.items() if name == committer}
        committed = await self._settled_offsets(every)
        marks = await admin.watermarks(partitions)
        begun: list[TopicPartition] = []
        added = await self._added(at for at in partitions if committed.get(at) is None)
        for partition in partitions:
            found = committed.get(partition)
            low, high = marks[partition]
            topic_id = self._topics[partition.topic].topic_id
            positions = read_positions(found) if found is not None and not is_end(found) else None
            if positions is None:
                positions = Positions(low)
                if self._first_position == "latest" and partition not in added:
                    begun.append(partition)
                    positions = Positions(high)
            elif positions.topic_id not in {"", topic_id}:
                begun.append(partition)
                positions = self._moved(
                    partition,
                    f"the committed offset {positions.offset} is of an earlier topic of this name",
                    Watermarks(low, high),
                )
            elif not low <= positions.offset <= high:
                begun.append(partition)
                positions = self._moved(
                    partition,
                    f"the committed offset {positions.offset} lies outside of what the topic "
                    f"holds, {low} to {high}",
                    Watermarks(low, high),
                )
            self._committed[partition] = structs.replace(
                positions,
                topic_id=topic_id,
                program=self._program,
                partitions=positions.partitions or self._topics[partition.topic].partitions,
            )
        await self._keep(begun)
        ends = {at: end for at in every - partitions if (end := committed[at]) is not None}
        return {at: self._committed[at] for at in partitions}, ends

    async def _settled_offsets(
        self, partitions: Collection[TopicPartition]
    ) -> Mapping[TopicPartition, CommittedOffset | None]:
        """Return what is committed, once no transaction is open over it."""
        admin, group = self._transport.admin, self._options.group
        try:
            return await admin.committed(group, partitions, stable=True)
        except BrokerUnavailable as error:
            if not error.pending:
                raise
        await self._forgotten.end_all()
        return await admin.committed(group, partitions, stable=True)

    async def _added(self, unknown: Iterable[TopicPartition]) -> Collection[TopicPartition]:
        """Return which partitions without an offset the topics have grown by.

        What they hold came after the group had begun: their end is not where it begins with them.
        """
        asked = list(unknown) if self._first_position == "latest" else []
        if not asked:
            return ()
        every = [
            TopicPartition(name, number)
            for name in sorted({at.topic for at in asked})
            for number in range(self._topics[name].partitions)
        ]
        committed = await self._transport.admin.committed(self._options.group, every, stable=False)
        counts: dict[str, int] = {}
        for at, offset in committed.items():
            found = read_positions(offset) if offset is not None else None
            if found is not None and found.topic_id == self._topics[at.topic].topic_id:
                before = found.partitions or self._topics[at.topic].partitions
                counts[at.topic] = min(before, counts.get(at.topic, before))
        added = {at for at in asked if at.partition >= counts.get(at.topic, math.inf)}
        for at in sorted(added):
            logger.info(
                "topic %r has grown: its partition %d is read from its first record on, whatever "
                "first_position= says", at.topic, at.partition,
            )  # fmt: skip
        return added

    async def _keep(self, begun: Sequence[TopicPartition]) -> None:
        """Commit where partitions begin, before anything of them is taken.

        A topic's end moves: who asks once more, after a failure or elsewhere, would begin behind
        what has come since.
        """
        if not begun:
            return
        refused: CommitFailed | None = None
        for _ in range(BEGINNING_TRIES):  # others join, and the group counts on
            try:
                await self.client.commit({at: self._committed[at].write() for at in begun})
            except CommitFailed as error:
                refused = error
                await trio.sleep(BEGINNING_PAUSE_S)
            else:
                return
        # A rebalance that takes them ends this; whoever has them next says where they begin.
        logger.warning("where partitions begin is not committed: %s", refused)

    def _unreleased(self, latest: Mapping[TopicPartition, Any]) -> dict[TopicPartition, str]:
        """Return whom a partition's last commit is of, where it may yet hold us back."""
        named: dict[TopicPartition, str] = {}
        for partition, offset in latest.items():
            found = read_positions(offset) if offset is not None else None
            if (
                found is not None
                and not found.released
                and found.committer not in {self.committer_id, "", self._fenced.get(partition)}
            ):
                named[partition] = found.committer
        return named

    def _moved(self, partition: TopicPartition, why: str, marks: Watermarks) -> Positions:
        """Apply the policy for a committed offset that means nothing (any more)."""
        where = f"topic {partition.topic!r}, partition {partition.partition}: {why}"
        if self._out_of_range == "stop":
            raise OffsetOutOfRange(
                f"{where}: records were deleted before they were read, or the topic was made "
                "anew (or nothing but the marks of transactions stood there); choose where to go "
                "on by out_of_range='earliest' or 'latest'"
            )
        target = marks.low if self._out_of_range == "earliest" else marks.high
        logger.warning("%s: going on at %d (out_of_range=%s)", where, target, self._out_of_range)
        return Positions(target)

    def plan(
        self,
        settled: Mapping[TopicPartition, Mapping[str, int]],
        releasing: frozenset[TopicPartition],
        beyond: Mapping[TopicPartition, Mapping[str, Ranges]] | None = None,
    ) -> dict[TopicPartition, Positions]:
        """Return the positions that a commit now has to write: those that have changed.

        Also those that bear the name of somebody who did not release them: from then on they bear
        ours, and nobody has to fence him for them any more.

        Args:
            settled: the positions of the agents.
            releasing: partitions that are given back.
            beyond: what agents have settled beyond their positions.
        """
        beyond = beyond or {}
        plan: dict[TopicPartition, Positions] = {}
        for partition, agents in settled.items():
            before = self._committed.get(partition)
            if before is None:
                continue
            releases = partition in releasing
            after = before.moved(
                agents, self.committer_id, released=releases, beyond=beyond.get(partition)
            )
            moved = (after.offset, after.agents, after.beyond) != (
                before.offset, before.agents, before.beyond,
            )  # fmt: skip
            unreleased = bool(before.committer) and not before.released
            foreign = (
                unreleased and bool(self.committer_id) and (before.committer != self.committer_id)
            )
            if moved or foreign or (releases and unreleased):
                plan[partition] = after
        for partition in releasing - settled.keys():  # whose lanes have ended before
            before = self._committed.get(partition)
            if before is not None and before.committer and not before.released:
                plan[partition] = structs.replace(
                    before, committer=self.committer_id, released=True
                )
        return plan

    def beside(self, numbers: Container[int]) -> dict[TopicPartition, CommittedOffset]:
        """Return where partitions of these numbers stand, as it is to be committed once more.

        Ends of changelogs are committed with the positions that they belong to: a request of ours
        that nobody waits for any more may have left others.
        """
        standing = self._committed.items()
        return {at: positions.write() for at, positions in standing if at.partition in numbers}

    def in_doubt(self, partitions: Iterable[TopicPartition]) -> None:
        """A commit of theirs has failed: what is committed is not known until it is recalled."""
        for partition in partitions:
            self._committed.pop(partition, None)

    def committed(self, plan: Mapping[TopicPartition, Positions]) -> None:
        """The plan's positions have been committed."""
        self._committed.update(plan)

    def positions(self) -> Mapping[TopicPartition, Positions]:
        """Return the committed positions of the partitions that this worker holds."""
        return dict(self._committed)


class LateListener:
    """A consumer's listener that is named later: the conductor, which needs the consumer.

    Attributes:
        target: who listens.
        told: called after each assignment.
    """

    target: RebalanceListener
    told: Callable[[], None] | None = None

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """The driver gave partitions."""
        await self.target.assigned(partitions)
        if self.told is not None:
            self.told()

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """The driver takes partitions when this returns."""
        await self.target.revoked(partitions)

    async def lost(self, partitions: frozenset[TopicPartition]) -> None:
        """The driver has lost partitions."""
        await self.target.lost(partitions)
