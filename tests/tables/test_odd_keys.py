"""Keys that can be spelt in several ways, and what an event does to its table besides."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.exceptions import StoreError
from trickle.serializers import codec_for
from trickle.stores.memory import MemoryTable


class Point(msgspec.Struct, frozen=True):
    x: float
    y: float


class Apart(msgspec.Struct, frozen=True, eq=False):
    """Equal to nothing but itself, and hashed so."""

    number: int


class Folding:
    """A codec that writes what it is given in small letters."""

    def encode(self, value: Any) -> bytes:
        return str(value).lower().encode()

    def decode(self, data: bytes, type: object) -> Any:
        return data.decode()


@pytest.mark.parametrize(
    ("kind", "spellings"),
    [
        (Point, [Point(1, 2), Point(1.0, 2.0)]),
        (tuple[float, int], [(1, 2), (1.0, 2)]),
        (frozenset[int], [frozenset({8, 0}), frozenset({0, 8})]),
    ],
)
async def test_a_key_is_one_however_it_is_spelt(
    mock_clock: MockClock, kind: Any, spellings: list[Any]
) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    counts = app.table("counts", key=kind, value=int, default=int)
    seen: list[tuple[int, bool, int]] = []

    @app.agent(source)
    async def count(stream: trickle.Stream[int]) -> None:
        async for index in stream:
            counts[spellings[index]] += 1
            known = all(key in counts for key in counts)
            seen.append((len(counts), known, len(list(counts.items()))))
            if len(seen) == 4:
                counts.clear()
                seen.append((len(counts), True, 0))

    async with trickle.testing.run(app) as t:
        for index in (0, 1):
            await t.send(source, index)
        await t.settled()
        assert dict(counts.items()) == {spellings[1]: 2}
        await t.crash()
        for index in (1, 0):
            await t.send(source, index)
        await t.settled()
    assert seen == [(1, True, 1)] * 4 + [(0, True, 0)]


def test_sets_in_keys_are_written_in_one_order() -> None:
    """Text hashes otherwise in each process, so the order in a set is another one."""
    words = ["b", "a", "c", "e", "d", "f"]
    for serializer in ("json", "msgpack"):
        codec = codec_for(frozenset[str], serializer, what="keys", stable=True)
        data = codec.encode(frozenset(words))
        assert data is not None
        assert [data.index(word.encode()) for word in sorted(words)] == sorted(
            data.index(word.encode()) for word in words
        )


async def test_keys_that_equal_only_themselves_are_in_order(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=Apart, value=int, partitions=1)
    counts = app.table("counts", key=Apart, value=int, default=int)

    @app.agent(source, concurrency=3)
    async def count(stream: trickle.Stream[int, Apart]) -> None:
        async for event in stream.events():
            before = counts[event.key]
            await trio.sleep(1)
            counts[event.key] = before + 1

    async with trickle.testing.run(app) as t:
        for value in range(6):
            await t.send(source, value, key=Apart(1))
        await t.advance(100)
        await t.settled()
        assert list(counts.values()) == [6]


async def test_a_codec_that_folds_keys_makes_one_of_them(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int, key_serializer=Folding())

    @app.agent(source)
    async def count(stream: trickle.Stream[int, str]) -> None:
        async for key, value in stream.items():
            counts[key] += value

    async with trickle.testing.run(app) as t:
        for key in ("a", "A", "a"):
            await t.send(source, 1, key=key)
        await t.settled()
        assert dict(counts.items()) == {"a": 3}
        await t.crash()
        assert dict(counts.items()) == {"a": 3}


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("kind", [int, list[int]])
async def test_settling_reads_nothing_that_could_fail(
    mock_clock: MockClock, concurrency: int, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails for a moment fails the event before anything of it is on its way."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", key=str, value=int, partitions=1)
    table = app.table("table", key=str, value=kind)
    left = [0]
    get = MemoryTable.get

    def failing(self: MemoryTable, key: bytes) -> bytes | None:
        if left[0]:
            left[0] -= 1
            raise StoreError("the disk had a hiccup")
        return get(self, key)

    monkeypatch.setattr(MemoryTable, "get", failing)
    policy = trickle.Retry(times=5, backoff=0.1)

    @app.agent(source, on_error=policy, concurrency=concurrency)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            table[event.key] = event.value if kind is int else [event.value]
            out.send_nowait(event.value, key=event.key)

    async with trickle.testing.run(app) as t:
        left[0] = 3
        await t.send(source, 7, key="k")
        await t.advance(10)
        await t.settled()
        assert left == [0]
        assert [event.value for event in t.sent(out)] == [7]


async def test_what_an_event_does_while_it_looks_around(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    lists = app.table("lists", key=str, value=list[int], default=list[int])
    counts = app.table("counts", key=str, value=int, default=int)
    left: list[str] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for value in stream:
            if value == 0:
                for key in "abcd":
                    lists[key] = [1]
            elif value == 1:
                for key in lists:
                    left.append(key)
                    if key == "b":
                        del lists["c"]
            else:
                lent = lists["new"]
                assert lists.setdefault("new", []) is lent
                lent.append(5)
                assert ("missing", 0) not in counts.items()
                assert ("a", [1]) in lists.items()

    async with trickle.testing.run(app) as t:
        for value in range(3):
            await t.send(source, value, key="k")
            await t.settled()
        assert left == ["a", "b", "d"]
        assert lists.get("new") == [5]
