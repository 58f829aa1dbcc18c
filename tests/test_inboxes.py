"""What has been fetched and waits: counted, paused where a lane is stuck, ended with its lanes."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trickle
import trickle.testing
from trickle.consumer import Consumer
from trickle.exceptions import OffsetOutOfRange
from trickle.fetcher import Fetcher
from trickle.inboxes import Inboxes
from trickle.sensors import BaseSensor
from trickle.streams import Lane, Pace
from trickle.streams.nowhere import Nowhere
from trickle.transport.shared import RecordBatch
from trickle.types import Record, TopicPartition

STUCK = TopicPartition("t", 0)


def make_batch(partition: int, offset: int, size: int = 1000) -> RecordBatch:
    record = Record(
        topic="t", partition=partition, offset=offset, timestamp_ms=0, key=None,
        value=b"x" * size, headers=(),
    )  # fmt: skip
    return RecordBatch([record])


def make_lane(inboxes: Inboxes, partition: int) -> Lane:
    async def refuse(*_: object) -> None:
        raise AssertionError

    lane = Lane(
        "agent", partition, shards={}, positions={"t": 0}, codecs={}, settlement=Nowhere(),
        refuse=refuse, pace=Pace(), taken=inboxes.taken,
    )  # fmt: skip
    inboxes.open(TopicPartition("t", partition), lane)
    return lane


class Client:
    """Gives what the test puts in, and remembers what was paused."""

    def __init__(self) -> None:
        self.put, self._batches = trio.open_memory_channel[RecordBatch](100)
        self.paused: set[TopicPartition] = set()

    async def fetch(self) -> list[RecordBatch]:
        return [await self._batches.receive()]

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        self.paused |= partitions

    def resume(self, partitions: frozenset[TopicPartition]) -> None:
        self.paused -= partitions


class Member:
    def __init__(self, client: Client) -> None:
        self.client = client


async def test_a_stuck_lane_is_paused_and_holds_up_nobody_else(autojump_clock: MockClock) -> None:
    """Partition 0 is full and its lane takes nothing; what arrives for 1 goes on at once."""
    inboxes = Inboxes(BaseSensor())
    stuck, quick = make_lane(inboxes, 0), make_lane(inboxes, 1)
    stuck.idle = False
    client = Client()

    async def out_of_range(error: OffsetOutOfRange) -> None:
        raise error

    fetcher = Fetcher(cast("Consumer", Member(client)), inboxes, out_of_range, 2000)
    async with trio.open_nursery() as nursery:
        await nursery.start(fetcher.run)
        for offset in range(3):
            client.put.send_nowait(make_batch(0, offset))
        await trio.sleep(1)
        assert client.paused == inboxes.paused == {STUCK}
        began = trio.current_time()
        for offset in range(5):
            client.put.send_nowait(make_batch(1, offset, size=10))
        await wait_all_tasks_blocked()
        assert len(quick.inbox) == 5
        assert trio.current_time() == began
        stuck.close()  # it takes all that waits: there is room again
        await wait_all_tasks_blocked()
        assert client.paused == inboxes.paused == set()
        nursery.cancel_scope.cancel()


async def test_a_pause_ends_with_the_assignment() -> None:
    """The next assignment's partitions are not resumed for a pause of the last one's."""
    inboxes = Inboxes(BaseSensor())
    lane = make_lane(inboxes, 0)
    inboxes.deliver(make_batch(0, 0))
    inboxes.paused = frozenset({STUCK})
    assert inboxes.pressing_bytes() == 0 < inboxes.waiting_bytes
    inboxes.close()
    assert (inboxes.paused, inboxes.below(1 << 30)) == (frozenset(), frozenset())
    lane.close()
    assert inboxes.waiting_bytes == 0
    inboxes.deliver(make_batch(0, 1))  # nobody's: it is fetched again
    assert inboxes.waiting_bytes == 0


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
async def test_only_what_is_waited_for_is_committed_as_lanes_run_dry(
    mock_clock: MockClock, guarantee: Any
) -> None:
    """Without transactions outputs are there already, so offsets wait for the interval."""
    app = trickle.App("app", processing_guarantee=guarantee, commit_interval=0.1)
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            out.send_nowait(value)

    async with trickle.testing.run(app) as t:
        await t.advance(1)
        await t.send(source, 1, key="k")
        await wait_all_tasks_blocked()
        assert [event.value for event in t.sent(out)] == [1]
        committed = t.broker.group("app").offsets.get(trickle.TopicPartition("source", 0))
        assert (committed is not None) == (guarantee == "exactly_once")
        await t.advance(0.2)
        assert t.broker.group("app").offsets[trickle.TopicPartition("source", 0)].offset == 1
