"""The topology: what an app consumes and declares, checked before anything runs.

Topics are declared in three rounds, since each takes its partition count from the one before:
the user's topics; repartition topics, with their source's count; changelogs, with the count of the
source that shards their table. What exists already is checked instead.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec

from trickle.agents import Agent
from trickle.exceptions import DefinitionError, TopicError
from trickle.positions import check_names
from trickle.tables import Table
from trickle.topics import Topic
from trickle.transport.contract import Admin, TopicInfo, TopicSpec
from trickle.transport.looks import find_topics

__all__ = ["Topology", "check_positions", "owned_topics", "prepare"]

logger = logging.getLogger("trickle.topology")


class Topology(msgspec.Struct, frozen=True):
    """What is consumed, and how it is partitioned.

    Attributes:
        topics: all topics of the app as they are on the broker, by name.
        counts: the partition count of each topic that is consumed.
        tables: the tables by the partition count that shards them.
    """

    topics: Mapping[str, TopicInfo]
    counts: Mapping[str, int]
    tables: Mapping[int, Sequence[Table[Any, Any]]]

    @property
    def changelogs(self) -> frozenset[str]:
        """The changelogs' topics."""
        return frozenset(table.changelog for group in self.tables.values() for table in group)


async def prepare(
    admin: Admin,
    *,
    agents: Sequence[Agent[Any, Any]],
    topics: Iterable[Topic[Any, Any]],
    tables: Sequence[Table[Any, Any]],
    declare: bool,
    partitions: int | None,
    replicas: int | None,
) -> Topology:
    """Declare what is missing, and check what is there.

    Args:
        agents: upstream first, internal ones included.
        topics: the user's topics.
        tables: all of the app's.
        declare: whether missing topics may be created.
        partitions: for topics that name no count; None leaves it to the broker.
        replicas: likewise.

    Raises:
        TopicError: a topic is missing and may not be declared, or is not as it must be.
        DefinitionError: partition counts do not fit.
    """
    declarer = _Declarer(admin, declare, partitions, replicas)
    users = {topic.name: topic for topic in topics if not topic.internal}
    for agent in agents:
        sinks = [cast("Topic[Any, Any]", s) for s in agent.sinks if isinstance(s, Topic)]
        for topic in (*agent.topics, *sinks):
            if not topic.internal:
                users[topic.name] = topic
    specs = [topic.spec() for topic in users.values()]
    planned = await declarer.plan(specs, agents)
    if planned is not None:  # what cannot work leaves nothing behind
        for agent in agents:
            _check_counts(agent, planned)
        _shard(tables, agents, planned)
    await declarer.declare(specs)
    for spec in specs:
        _check_declared(spec, declarer.infos[spec.name])
    await _declare_repartitions(declarer, agents)
    counts = {
        topic.name: declarer.infos[topic.name].partitions
        for agent in agents
        for topic in agent.topics
    }
    for agent in agents:
        _check_counts(agent, counts)
    sharded = _shard(tables, agents, counts)
    await declarer.declare(
        [table.spec(count) for count, group in sharded.items() for table in group]
    )
    for count, group in sharded.items():
        for table in group:
            _check_changelog(table, declarer.infos[table.changelog], count)
    return Topology(declarer.infos, counts, sharded)


def check_positions(agents: Iterable[Agent[Any, Any]], committer: str) -> None:
    """See that one offset holds the positions of all agents that read its topic.

    Raises:
        DefinitionError: they are too many, with too long names.
    """
    readers: dict[str, list[str]] = defaultdict(list)
    for agent in agents:
        for topic in agent.topics:
            readers[topic.name].append(agent.name)
    for names in readers.values():
        check_names(names, committer)


def owned_topics(agents: Iterable[Agent[Any, Any]]) -> frozenset[str]:
    """Return the repartition topics that trickle made, and empties."""
    return frozenset(
        repartition.target.name
        for agent in agents
        for repartition in agent.source.repartitions
        if repartition.owned
    )


class _Declarer:
    """Creates what is missing, and gathers what is there."""

    def __init__(
        self, admin: Admin, allowed: bool, partitions: int | None, replicas: int | None
    ) -> None:
        self._admin = admin
        self._allowed = allowed
        self._partitions = partitions
        self._replicas = replicas
        self.infos: dict[str, TopicInfo] = {}

    async def plan(
        self, specs: Sequence[TopicSpec], agents: Sequence[Agent[Any, Any]]
    ) -> dict[str, int] | None:
        """Return the counts that topics will have; None where the broker chooses some of them."""
        self.infos.update(await self._admin.topics([spec.name for spec in specs]))
        counts: dict[str, int] = {}
        for spec in specs:
            found = self.infos.get(spec.name)
            count = spec.partitions or (self._partitions if found is None else found.partitions)
            if count is None:
                return None
            counts[spec.name] = count
        for agent in agents:
            for repartition in agent.source.repartitions:
                fed = [counts[topic.name] for topic in repartition.source.topics]
                counts.setdefault(repartition.target.name, max(fed))
        return counts

    async def declare(self, specs: Sequence[TopicSpec]) -> None:
        names = [spec.name for spec in specs if spec.name not in self.infos]
        if names:
            self.infos.update(await self._admin.topics(names))
        missing = [spec for spec in specs if spec.name not in self.infos]
        if missing and not self._allowed:
            raise TopicError(
                f"missing on the broker: {_listed(spec.name for spec in missing)}; create them, or "
                "allow the app to by declare_topics=True"
            )
        if missing:
            await self._admin.declare(
                [
                    msgspec.structs.replace(
                        spec,
                        partitions=spec.partitions or self._partitions,
                        replicas=spec.replicas or self._replicas,
                    )
                    for spec in missing
                ]
            )
            self.infos.update(await find_topics(self._admin, names))
            logger.info("declared %s", _listed(spec.name for spec in missing))
        for spec in specs:
            info = self.infos.get(spec.name)
            if info is None:
                raise TopicError(
                    f"topic {spec.name!r} was declared, and does not exist all the same"
                )


def _check_declared(spec: TopicSpec, info: TopicInfo) -> None:
    if spec.partitions is not None and spec.partitions != info.partitions:
        raise TopicError(
            f"topic {spec.name!r} has {info.partitions} partitions on the broker, and "
            f"partitions={spec.partitions} in the app: change the app's, or the topic"
        )


async def _declare_repartitions(declarer: _Declarer, agents: Sequence[Agent[Any, Any]]) -> None:
    for agent in agents:
        for repartition in agent.source.repartitions:
            name = repartition.target.name
            count = max(declarer.infos[t.name].partitions for t in repartition.source.topics)
            if repartition.owned:
                await declarer.declare([repartition.target.spec(partitions=count)])
            have = declarer.infos[name].partitions
            if repartition.owned and have != count:
                raise TopicError(
                    f"the repartition topic {name!r} has {have} partitions, and its source "
                    f"{_listed(t.name for t in repartition.source.topics)} has {count}: delete the "
                    "repartition topic once all of it has been handled, or use another name="
                )


def _check_counts(agent: Agent[Any, Any], counts: Mapping[str, int]) -> None:
    mine = {topic.name: counts[topic.name] for topic in agent.topics}
    if len(set(mine.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in sorted(mine.items()))
        raise DefinitionError(
            f"agent {agent.name!r} reads topics of different partition counts: {listed}; give them "
            "the same count, or use an agent for each"
        )


def _shard(
    tables: Sequence[Table[Any, Any]], agents: Sequence[Agent[Any, Any]], counts: Mapping[str, int]
) -> dict[int, list[Table[Any, Any]]]:
    """Find the partition count that shards each table."""
    sharded: dict[int, list[Table[Any, Any]]] = {}
    # An agent of trickle's own, which forwards or regroups, writes no table.
    read = {t.name: counts[t.name] for agent in agents if not agent.internal for t in agent.topics}
    everywhere = set(read.values())
    listed = ", ".join(f"{name} has {count}" for name, count in sorted(read.items()))
    for table in tables:
        if table.source is not None:
            found = {counts[t.name] for t in table.source.topics if t.name in counts}
            if not found:
                raise DefinitionError(
                    f"table {table.name!r}: no agent reads its source "
                    f"{_listed(t.name for t in table.source.topics)}"
                )
        else:
            found = everywhere
        if len(found) > 1:
            raise DefinitionError(
                f"table {table.name!r}: which topic's partitions shard it? The agents' sources "
                f"differ: {listed}; name one by app.table(…, source=)"
            )
        for count in found:
            sharded.setdefault(count, []).append(table)
    return sharded


def _check_changelog(table: Table[Any, Any], info: TopicInfo, count: int) -> None:
    if info.partitions != count:
        raise TopicError(
            f"table {table.name!r}: its changelog {info.name!r} has {info.partitions} partitions, "
            f"and its source has {count}: a keyed table cannot follow a source whose partitions "
            "have grown; use a new table name and load it from the source, or go back to "
            f"{info.partitions} partitions"
        )
    if info.compacting is False:
        logger.warning(
            "table %r: its changelog %r is not compacted (cleanup.policy), so that the broker "
            "deletes what the table holds once it is old; set cleanup.policy=compact",
            table.name, info.name,
        )  # fmt: skip


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(set(names)))
