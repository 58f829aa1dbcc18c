"""Programs with more than one app: each topic and each table finds the Run of its own."""

from __future__ import annotations

import uuid

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing


class Counting:
    """An app that sums what it is sent, on a broker of its own."""

    def __init__(self, name: str) -> None:
        self.app = trickle.App(
            name, broker=f"memory://{uuid.uuid4().hex}", store="memory://", commit_interval=0.01
        )
        self.numbers = self.app.topic("numbers", key=str, value=int, partitions=2)
        self.sums = self.app.table("sums", key=str, value=int, default=int)

        @self.app.agent(self.numbers)
        async def work(stream: trickle.Stream[int, str]) -> None:
            async for key, number in stream.items():
                self.sums[key] += number

    async def summed(self, key: str, number: int) -> None:
        with trio.fail_after(10):
            while self.sums[key] != number:  # noqa: ASYNC110 - a table tells nobody of a commit
                await trio.sleep(0.001)


async def test_one_apps_block_in_anothers() -> None:
    one, two = Counting("one"), Counting("two")
    async with one.app.run():
        async with two.app.run():
            await one.numbers.send(1, key="k")
            await two.numbers.send(2, key="k")
            await one.summed("k", 1)
            await two.summed("k", 2)
            two.numbers.send_nowait(3, key="k")
            assert await one.numbers.send_all([("k", 5)]) == 1
            await two.summed("k", 5)
            await one.summed("k", 6)
            assert await one.sums.query("k") == 6
        await one.numbers.send(1, key="k")
        await one.summed("k", 7)
        with pytest.raises(trickle.UsageError, match="table 'sums' is not one of the app that"):
            two.sums.get("k")
    with pytest.raises(trickle.UsageError, match="no app is running here"):
        one.sums.get("k")
    with pytest.raises(trickle.UsageError, match="no app is running here"):
        await one.numbers.send(1)


async def test_two_apps_of_one_id_as_on_two_clusters() -> None:
    one, two = Counting("same"), Counting("same")
    async with one.app.run(), two.app.run():
        await one.numbers.send(1, key="k")
        one.numbers.send_nowait(2, key="k")
        assert await one.numbers.send_all([("k", 4)]) == 1
        await two.numbers.send(8, key="k")
        await one.summed("k", 7)
        await two.summed("k", 8)


async def test_the_same_app_twice() -> None:
    one = Counting("one")
    async with one.app.run(), one.app.run():
        for letter in "abcdefgh":
            await one.numbers.send(1, key=letter)
    async with one.app.run():
        assert dict(one.sums) == dict.fromkeys("abcdefgh", 1)


async def test_two_simulations(mock_clock: MockClock) -> None:
    one, two = Counting("one"), Counting("two")
    async with trickle.testing.run(one.app) as t, trickle.testing.run(two.app) as u:
        await t.send(one.numbers, 1, key="k")
        await u.send(two.numbers, 2, key="k")
        await one.numbers.send(10, key="k")
        await t.settled()
        await u.settled()
        assert (one.sums["k"], two.sums["k"]) == (11, 2)
        assert len(t.sent(one.numbers)) == 2
        assert len(u.sent(two.numbers)) == 1


async def test_a_thread_sends_by_trio_s_thread_or_not_at_all() -> None:
    app = trickle.App("app", broker="memory://a-thread-sends", web=False)
    source = app.topic("source", value=int, partitions=1)
    seen: list[int] = []
    arrived = trio.Event()

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            seen.append(value)
            arrived.set()

    del work
    with trio.fail_after(20):
        async with app.run():
            with pytest.raises(trickle.UsageError, match=r"trio\.from_thread\.run_sync"):
                await trio.to_thread.run_sync(source.send_nowait, 1)
            await trio.to_thread.run_sync(trio.from_thread.run_sync, source.send_nowait, 2)
            await arrived.wait()
    assert seen == [2]
