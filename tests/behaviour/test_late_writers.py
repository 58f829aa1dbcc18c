"""At-least-once: what a worker that is in the group no more still writes into a changelog.

It stood still for longer than its session; what it had handed to the broker arrives behind what
its successor has written of the same keys. Its offsets are refused, its changelog records are not.
"""

from __future__ import annotations

import pytest
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.stores.memory import MemoryDisk
from trickle.tables.recovery import CHANGELOG_HEADERS
from trickle.transport.contract import ProducerOptions
from trickle.types import TopicPartition


class Scene:
    """An app that counts; and one who writes into its changelog, too."""

    def __init__(self) -> None:
        self.app = app = trickle.App("app", processing_guarantee="at_least_once")
        self.source = app.topic("source", key=str, value=int, partitions=1)
        self.counts = app.table("counts", key=str, value=int, default=int)

        @app.agent(self.source)
        async def work(stream: trickle.Stream[int, str]) -> None:
            async for key, _ in stream.items():
                self.counts[key] += 1

    async def send(self, t: trickle.testing.Simulation, *keys: str) -> None:
        for key in keys:
            await t.send(self.source, 1, key=key)
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

    def state(self) -> dict[str, int]:
        return dict(self.counts.items())


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
