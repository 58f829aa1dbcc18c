"""At-least-once: what a worker that is in the group no more still writes into a changelog.

It stood still for longer than its session; what it had handed to the broker arrives behind what
its successor has written of the same keys. Its offsets are refused, its changelog records are not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.exceptions import CommitFailed
from trickle.stores.memory import MemoryDisk
from trickle.tables.recovery import CHANGELOG_HEADERS
from trickle.transport.contract import CommittedOffset, ProducerOptions
from trickle.transport.memory.consumer import MemoryConsumer
from trickle.transport.memory.producer import MemoryProducer
from trickle.transport.memory.transport import MemoryAdmin
from trickle.types import Guarantee, TopicPartition


class Scene:
    """An app that counts; and one who writes into its changelog, too.

    Args:
        guarantee: of the app.
        topics: that it counts; the first one is ``source``.
        counting: whether it has the table, beside another one.

    Attributes:
        gate: each event waits for it.
    """

    def __init__(
        self,
        guarantee: Guarantee = "at_least_once",
        topics: Sequence[str] = ("source",),
        *,
        counting: bool = True,
    ) -> None:
        self.app = app = trickle.App("app", processing_guarantee=guarantee)
        self.topics = {name: app.topic(name, key=str, value=int, partitions=1) for name in topics}
        self.source = self.topics[topics[0]]
        self.gate = trio.Event()
        self.gate.set()
        self.events = app.table("events", key=str, value=int, default=int)
        if counting:
            self.counts = app.table("counts", key=str, value=int, default=int)

        @app.agent(list(self.topics.values()))
        async def work(stream: trickle.Stream[int, str]) -> None:
            async for key, value in stream.items():
                await self.gate.wait()
                self.events[key] += 1
                if counting and value:
                    self.counts[key] += 1
                elif counting:
                    del self.counts[key]

    async def send(
        self, t: trickle.testing.Simulation, *keys: str, topic: str | None = None
    ) -> None:
        for key in keys:
            await t.send(self.topics[topic] if topic else self.source, 1, key=key)
        await t.settled()

    async def take_over(self, t: trickle.testing.Simulation) -> None:
        """Be what runs from now on, on a worker with an empty disk."""
        await t.rebalance(workers=0)
        t.app = self.app
        await t.rebalance(workers=1)
        await t.settled()

    async def write_late(self, t: trickle.testing.Simulation, **counts: int) -> None:
        async with t.transport() as transport, transport.producer(ProducerOptions()) as producer:
            for key, count in counts.items():
                value = b"%d" % count
                await producer.send(
                    self.counts.changelog, 0, key.encode(), value, CHANGELOG_HEADERS, None
                )

    async def fold(self, t: trickle.testing.Simulation) -> dict[bytes, bytes | None]:
        """Return what the changelog says to somebody who knows nothing of ends."""
        at = TopicPartition(self.counts.changelog, 0)
        found: dict[bytes, bytes | None] = {}
        async with t.transport() as transport:
            end = (await transport.admin.watermarks([at]))[at].high
            async with transport.reader({at: 0}) as reader:
                while reader.positions()[at] < end:
                    for batch in await reader.fetch():
                        found |= dict(zip(batch.keys(), batch.values(), strict=True))  # type: ignore[arg-type]
        return found

    def state(self, t: trickle.testing.Simulation | None = None) -> dict[str, int]:
        if t is None:
            return dict(self.counts.items())
        [shard] = t.shards_of(self.counts)  # of an app that the simulation was not begun with
        keys = map(shard.keys.key, shard.marks(None))
        return cast("dict[str, int]", {key: shard.read_committed(key) for key in keys})


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_late_records_do_not_count_in_a_recovery(
    mock_clock: MockClock, elsewhere: bool
) -> None:
    """Neither on the disk that has been there, nor on an empty one."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "a", "a", "a", "b")
        await scene.write_late(t, a=1, c=7)
        if elsewhere:
            t.workers[0].disk = MemoryDisk()
        await t.crash()
        assert scene.state() == {"a": 3, "b": 1}
        await scene.send(t, "a")
        assert scene.state() == {"a": 4, "b": 1}
        assert await scene.fold(t) == {b"a": b"4", b"b": b"1", b"c": None}


async def test_late_records_are_noticed_by_the_next_commit(mock_clock: MockClock) -> None:
    """What the changelog says is put right at once: compaction would keep what came last."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "a", "a", "b")
        await scene.write_late(t, a=1)
        await scene.send(t, "b")
        await t.advance(1)
        assert scene.state() == {"a": 2, "b": 2}
        assert await scene.fold(t) == {b"a": b"2", b"b": b"2"}
        await scene.send(t, "a", "b")
        assert scene.state() == {"a": 3, "b": 3}


async def test_what_a_commit_left_without_its_offsets_does_not_count(
    mock_clock: MockClock,
) -> None:
    """The events come again, and count once."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "a")
        await t.send(scene.source, 1, key="a")
        await scene.write_late(t, a=2)  # as a worker that dies between the two does
        await t.crash()
        await t.settled()
        assert scene.state() == {"a": 2}


async def test_a_topic_that_has_moved_alone_may_be_left_out_later(mock_clock: MockClock) -> None:
    """The one beside it tells where the changelogs end, though it has not moved."""
    scene = Scene(topics=("source", "idle"))
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "b", topic="idle")
        await scene.send(t, *"aaaaa")
        smaller = Scene(topics=("idle",))
        await smaller.take_over(t)
        assert smaller.state(t) == {"a": 5, "b": 1}


async def test_what_exactly_once_committed_since_counts(mock_clock: MockClock) -> None:
    """What an idle topic's commit under at-least-once told is taken back."""
    scene = Scene(topics=("source", "idle"))
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "b", topic="idle")
        await scene.send(t, "a")
        exact = Scene("exactly_once", ("source", "idle"))
        await exact.take_over(t)
        await exact.send(t, *"aaaa")
        smaller = Scene("exactly_once", ("idle",))
        await smaller.take_over(t)
        assert smaller.state(t) == {"a": 5, "b": 1}


async def test_a_topic_whose_offset_is_gone_takes_nothing_with_it(mock_clock: MockClock) -> None:
    """As when it was deleted and made anew: its events come again."""
    scene = Scene(topics=("source", "idle"))
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "b", topic="idle")
        await scene.send(t, *"aaa")
        await t.rebalance(workers=0)
        t.broker.group("app").offsets.pop(TopicPartition("source", 0))
        t.workers.clear()
        await scene.take_over(t)
        assert scene.state() == {"a": 6, "b": 1}


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
async def test_what_a_program_with_other_topics_committed_since_counts(
    mock_clock: MockClock, guarantee: Guarantee
) -> None:
    """As when a release that reads another topic is taken back."""
    scene = Scene(topics=("old",))
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "a")
        newer = Scene(guarantee, topics=("new",))
        await newer.take_over(t)
        await newer.send(t, *"aaaa")
        back = Scene(topics=("old",))
        await back.take_over(t)
        assert back.state(t) == {"a": 5}


async def test_a_late_record_of_a_key_that_was_read_is_not_believed(mock_clock: MockClock) -> None:
    """Although compaction has dropped records of others, on a disk that is older than that."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "a")
        await t.advance(3)
        older = copy.deepcopy(t.workers[0].disk)
        for key in "xbbbbbx":  # each in a commit of its own
            await scene.send(t, key)
        await t.advance(3)
        t.broker.compact(scene.counts.changelog)
        await scene.write_late(t, b=1)
        t.workers[0].disk = older
        await t.crash()
        assert scene.state() == {"a": 1, "b": 5, "x": 2}


async def test_a_table_that_comes_back_after_a_release(mock_clock: MockClock) -> None:
    scene = Scene(topics=("source", "idle"))
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "b", topic="idle")
        await scene.send(t, *"aaaaa")
        without = Scene(topics=("source", "idle"), counting=False)
        await without.take_over(t)
        await without.send(t, "a")
        again = Scene(topics=("source", "idle"))
        await again.take_over(t)
        assert again.state(t) == {"a": 5, "b": 1}


async def test_what_compaction_kept_is_believed(mock_clock: MockClock) -> None:
    """It has dropped what counts for what does not: better too much than nothing at all."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, *"aaaaab")
        await scene.write_late(t, a=6)
        t.broker.compact(scene.counts.changelog)
        t.workers[0].disk = MemoryDisk()
        await t.crash()
        assert scene.state() == {"a": 6, "b": 1}


async def test_what_recovery_has_to_mend_is_mended_at_once(mock_clock: MockClock) -> None:
    """No event has to come; and the offsets of that commit tell where it ended."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, *"aaaaab")
        await scene.write_late(t, a=2)
        await t.crash()
        await t.advance(1)
        assert await scene.fold(t) == {b"a": b"5", b"b": b"1"}
        t.broker.compact(scene.counts.changelog)
        t.workers[0].disk = MemoryDisk()
        await t.crash()
        assert scene.state() == {"a": 5, "b": 1}


async def test_a_worker_that_ends_with_a_late_record_ends_well(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is next handles the events since its last commit."""
    scene = Scene()
    async with trickle.testing.run(scene.app, commit_interval=5) as t:
        await t.send(scene.source, 1, key="a")
        await t.advance(6)
        await t.send(scene.source, 1, key="a")
        await t.advance(1)
        await scene.write_late(t, a=9)
        await t.rebalance(workers=0)
        assert "records that this worker has not written" in caplog.text
        await t.rebalance(workers=1)
        await t.advance(6)
        await t.settled()
        assert scene.state() == {"a": 2}


async def test_a_late_key_that_cannot_be_read_any_more_stops_nothing(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "a")
        async with t.transport() as transport, transport.producer(ProducerOptions()) as producer:
            at = (scene.counts.changelog, 0)
            await producer.send(*at, b"\xff", b"1", CHANGELOG_HEADERS, None)
        await t.crash()
        assert scene.state() == {"a": 1}
        assert "its key cannot be read" in caplog.text


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
async def test_an_agent_that_reads_a_changelog_keeps_its_position(
    mock_clock: MockClock, guarantee: Guarantee
) -> None:
    """The changelog's offset in the group is that agent's, and no end."""
    scene = Scene(guarantee)
    changes = scene.app.topic(scene.counts.changelog, key=str, value=int, partitions=1)
    seen: list[int] = []
    hold = trio.Event()

    @scene.app.agent(changes)
    async def follow(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            await hold.wait()
            seen.append(value)

    del follow
    async with trickle.testing.run(scene.app) as t:
        for _ in range(3):
            await t.send(scene.source, 1, key="a")
            await t.advance(1)
        await t.crash()
        hold.set()
        await t.settled()
        assert seen == [1, 2, 3]
        await t.crash()
        await scene.send(t, "a")
        assert seen == [1, 2, 3, 4]


async def test_an_end_that_cannot_be_is_not_told_and_fails_nothing(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a batch that the broker knew already: the client has no offset for it."""
    commit = MemoryProducer.commit
    odd = [True]

    async def commit_oddly(self: MemoryProducer, *args: Any) -> Mapping[TopicPartition, int]:
        ends = await commit(self, *args)
        return dict.fromkeys(ends, -1000) if ends and odd else ends

    monkeypatch.setattr(MemoryProducer, "commit", commit_oddly)
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "a")
        odd.clear()
        await scene.send(t, "a", "a")
        assert "has not written" not in caplog.text
        await t.crash()
        assert scene.state() == {"a": 3}


async def test_an_end_that_cannot_be_reaches_no_store(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the table would be rebuilt, from a changelog that need not hold it all any more."""
    commit = MemoryProducer.commit

    async def commit_oddly(self: MemoryProducer, *args: Any) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(await commit(self, *args), -1000)

    monkeypatch.setattr(MemoryProducer, "commit", commit_oddly)
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "a")
        await t.advance(3)
        await t.crash()
        assert scene.state() == {"a": 1}
        assert "cannot be used" not in caplog.text


class LateOffsets:
    """One commit of offsets gets no answer, and lands later; its changes are in the changelog.

    Attributes:
        armed: it is the next one.
        lost: called then.
        kept: its offsets, until they land.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, t: trickle.testing.Simulation) -> None:
        self.armed = False
        self.lost: Callable[[], None] = lambda: None
        self.kept: dict[TopicPartition, CommittedOffset] = {}
        self.landed = trio.Event()
        commit = MemoryConsumer.commit

        async def lose(client: MemoryConsumer, offsets: Mapping[Any, CommittedOffset]) -> None:
            if not self.armed:
                return await commit(client, offsets)
            self.armed = False
            self.kept.update(offsets)
            self.lost()
            raise CommitFailed("no answer")

        self._t = t
        monkeypatch.setattr(MemoryConsumer, "commit", lose)

    def land(self) -> None:
        self._t.broker.commit_offsets("app", self.kept)
        self.kept.clear()
        self.landed.set()


async def test_a_mend_does_not_go_with_a_position_that_came_late(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ends that it commits belong to the positions that the worker began with."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        late = LateOffsets(monkeypatch, t)
        assign = MemoryConsumer.assign

        async def assign_late(self: MemoryConsumer, *args: Any, **options: Any) -> None:
            if late.kept:
                late.land()
            await assign(self, *args, **options)

        monkeypatch.setattr(MemoryConsumer, "assign", assign_late)
        await scene.send(t, "a")
        late.armed, late.lost = True, lambda: setattr(scene, "gate", trio.Event())
        await t.send(scene.source, 1, key="a")
        await t.send(scene.source, 1, key="a")
        await t.advance(1)  # the mend, and none of the events that come again
        assert late.landed.is_set()
        await t.crash()
        scene.gate.set()
        await t.settled()
        assert scene.state() == {"a": 3}


async def test_positions_and_ends_are_of_one_moment(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lands between two questions would be counted, and its events handled again."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        late = LateOffsets(monkeypatch, t)
        committed = MemoryAdmin.committed

        async def land_behind(
            self: MemoryAdmin, group: str, partitions: Any, *, stable: bool
        ) -> Any:
            found = await committed(self, group, partitions, stable=stable)
            if late.kept and group == "app" and TopicPartition("source", 0) in found:
                late.land()
            return found

        monkeypatch.setattr(MemoryAdmin, "committed", land_behind)
        await scene.send(t, "a")
        late.armed = True
        await scene.send(t, "a")
        assert late.landed.is_set()
        assert scene.state() == {"a": 2}


async def test_an_agent_that_comes_later_reads_a_changelog_from_the_start(
    mock_clock: MockClock,
) -> None:
    """The end that is committed for it is nobody's position."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "a")
        await scene.send(t, "a")
        newer = Scene()
        changes = newer.app.topic(newer.counts.changelog, key=str, value=int, partitions=1)
        seen: list[int] = []

        @newer.app.agent(changes)
        async def follow(stream: trickle.Stream[int]) -> None:
            async for value in stream:
                seen.append(value)

        del follow
        await newer.take_over(t)
        assert seen == [1, 2]


async def test_a_deleted_key_stays_deleted_beside_gaps(mock_clock: MockClock) -> None:
    """Its tombstone has been read, whatever compaction may have dropped of other keys."""
    scene = Scene()
    async with trickle.testing.run(scene.app) as t:
        await scene.send(t, "x")
        await t.send(scene.source, 0, key="x")
        await scene.send(t, *"bbb")
        t.broker.compact(scene.counts.changelog)
        await scene.write_late(t, x=1)
        t.workers[0].disk = MemoryDisk()
        await t.crash()
        assert scene.state() == {"b": 3}
