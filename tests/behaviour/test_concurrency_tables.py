"""Tables of an agent with concurrency: each event has the key that orders it, and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.exceptions import TableReadOnlyError, UsageError

Handle = Callable[[trickle.Event[int, str]], None]


class Tables:
    """An agent whose events do to tables what a test tells them, and then take a second."""

    def __init__(self, handle: Handle, **options: Any) -> None:
        self.app = app = trickle.App("app")
        self.source = source = app.topic("source", key=str, value=int, partitions=1)
        self.counts = app.table("counts", key=str, value=int, default=int)
        self.lists = app.table("lists", key=str, value=list[int], default=list)
        self.errors: list[str] = []

        chosen: dict[str, Any] = {"concurrency": 3, "on_error": trickle.Skip(), **options}

        @app.agent(source, **chosen)
        async def work(stream: trickle.Stream[int, str]) -> None:
            async for event in stream.events():
                try:
                    handle(event)
                except (UsageError, TableReadOnlyError) as error:
                    self.errors.append(str(error))
                    raise
                await trio.sleep(1)

        del work

    async def run(self, *events: tuple[str | None, int]) -> tuple[dict[str, int], dict[str, Any]]:
        """Return what is in the tables when the events have been handled."""
        async with trickle.testing.run(self.app) as t:
            for key, value in events:
                await t.send(self.source, value, key=key)
            await t.advance(100)
            await t.settled()
            found = dict(self.counts.items()), dict(self.lists.items())
            await t.crash()
            assert (dict(self.counts.items()), dict(self.lists.items())) == found
        return found


async def test_each_event_is_undone_alone(mock_clock: MockClock) -> None:
    """Three are in hand; the one that fails takes back what it did, in place or not."""

    def handle(event: trickle.Event[int, str]) -> None:
        tables.counts[event.key] += event.value
        tables.lists[event.key].append(event.value)
        assert tables.counts[event.key] == sum(tables.lists[event.key])
        if event.value == 13:
            raise ValueError("thirteen")

    tables = Tables(handle)
    counts, lists = await tables.run(
        ("a", 1), ("b", 13), ("c", 2), ("a", 13), ("b", 3), ("a", 4), ("c", 13)
    )
    assert counts == {"a": 5, "b": 3, "c": 2}
    assert lists == {"a": [1, 4], "b": [3], "c": [2]}
    assert not tables.errors


async def test_all_that_a_mapping_does_to_the_own_key(mock_clock: MockClock) -> None:
    def handle(event: trickle.Event[int, str]) -> None:
        for table, value in ((tables.counts, event.value), (tables.lists, [event.value])):
            mapping: Any = table
            key = event.key
            if event.value == 0:
                assert key in mapping
                assert mapping.pop(key)
                assert key not in mapping
                assert mapping.pop(key, None) is None
                assert mapping.get(key) is None
                with pytest.raises(KeyError):
                    del mapping[key]
                mapping[key] = value
                del mapping[key]
            else:
                assert mapping.setdefault(key, value) == mapping[key] == value
                assert key in mapping

    tables = Tables(handle)
    counts, lists = await tables.run(("a", 1), ("b", 2), ("a", 0), ("c", 3), ("c", 0))
    assert (counts, lists) == ({"b": 2}, {"b": [2]})
    assert not tables.errors


def write_other(tables: Tables, event: trickle.Event[int, str]) -> None:
    tables.counts["other"] += 1


def change_other_in_place(tables: Tables, event: trickle.Event[int, str]) -> None:
    tables.lists["other"].append(1)


def read_other(tables: Tables, event: trickle.Event[int, str]) -> None:
    tables.counts[event.key] += 1
    tables.counts.get("other")


def find_other(tables: Tables, event: trickle.Event[int, str]) -> None:
    tables.counts[event.key] += 1
    assert "other" not in tables.counts


def read_all(tables: Tables, event: trickle.Event[int, str]) -> None:
    tables.counts[event.key] += 1
    len(tables.counts)


def iterate_all(tables: Tables, event: trickle.Event[int, str]) -> None:
    tables.lists[event.key] = [2]
    tables.counts[event.key] += 1
    list(tables.counts)


def write_after_reading_other(tables: Tables, event: trickle.Event[int, str]) -> None:
    tables.counts.get("other")
    tables.counts[event.key] += 1


def write_after_reading_all(tables: Tables, event: trickle.Event[int, str]) -> None:
    tables.counts[event.key] = len(tables.counts)


def delete_other(tables: Tables, event: trickle.Event[int, str]) -> None:
    tables.counts.pop("other", None)
    del tables.counts["other"]


@pytest.mark.parametrize(
    ("handle", "what"),
    [
        (write_other, "writes key 'other'"),
        (change_other_in_place, "writes key 'other'"),
        (read_other, "reads key 'other'"),
        (find_other, "reads key 'other'"),
        (read_all, "reads all of its keys"),
        (iterate_all, "reads all of its keys"),
        (write_after_reading_other, "has read key 'other' before it wrote"),
        (write_after_reading_all, "has read all of its keys before it wrote"),
        (delete_other, "writes key 'other'"),
    ],
)
async def test_another_key_is_an_error(
    mock_clock: MockClock, handle: Callable[[Tables, Any], None], what: str
) -> None:
    def handle_one(event: trickle.Event[int, str]) -> None:
        handle(tables, event)

    tables = Tables(handle_one)
    seen: list[str] = []
    tables.app.agents["work"].on_error = trickle.DeadLetter()
    tables.app.agents["work"].dead_letters = letters = tables.app.topic(
        "letters", key=bytes | None, value=bytes | None, partitions=1
    )
    async with trickle.testing.run(tables.app) as t:
        for key in ("a", "b"):
            await t.send(tables.source, 1, key=key)
            await t.advance(0)
        await t.advance(10)
        await t.settled()
        assert not dict(tables.counts.items())
        assert not dict(tables.lists.items())
        for letter in t.sent(letters):
            seen += [(value or b"").decode() for name, value in letter.headers if "error" in name]
    table = "lists" if handle is change_other_in_place else "counts"
    assert min(seen) == (  # two keys, in no order
        f"table {table!r}: with concurrency above 1 an event of agent 'work' may touch only the "
        f"key that orders it (that is 'a' here), but this one {what}, which another event may have "
        "in hand: give ordering= a function that returns the table's key, regroup the source by it "
        "(group_by), or use concurrency=1"
    )
    assert len(seen) == 2


async def test_an_event_without_a_key_has_no_table_key(mock_clock: MockClock) -> None:
    def handle(event: trickle.Event[int, str]) -> None:
        tables.counts["k"] += 1

    tables = Tables(handle)
    assert await tables.run((None, 1)) == ({}, {})
    assert len(tables.errors) == 1
    assert "(it has no key)" in tables.errors[0]


async def test_a_functions_result_is_the_table_key(mock_clock: MockClock) -> None:
    """By the last digit, in a table whose keys are numbers; the events' keys are of no account."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    digits = app.table("digits", key=int, value=int, default=int)

    @app.agent(source, concurrency=4, ordering=lambda value: value % 10)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            before = digits[value % 10]
            await trio.sleep(value % 3)
            digits[value % 10] = before + value

    del work
    async with trickle.testing.run(app) as t:
        for value in range(100):
            await t.send(source, value, key=f"k{value % 7}")
        await t.advance(200)
        await t.settled()
        assert dict(digits.items()) == {n: sum(range(n, 100, 10)) for n in range(10)}


async def test_a_group_has_the_keys_of_all_its_events(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    counts = app.table("counts", key=str, value=int, default=int)
    failures = 1

    @app.agent(source, concurrency=3, on_error=trickle.Retry(times=1, backoff=1))
    async def work(stream: trickle.Stream[int, str]) -> None:
        nonlocal failures
        async for group in stream.events().take(4, within=1):
            for event in group:
                counts[event.key] += event.value
            await trio.sleep(1)
            if failures:
                failures -= 1
                raise ValueError("once")

    del work
    async with trickle.testing.run(app) as t:
        for value in range(30):
            await t.send(source, value, key=f"k{value % 7}")
        await t.advance(60)
        await t.settled()
        assert dict(counts.items()) == {f"k{n}": sum(range(n, 30, 7)) for n in range(7)}


def ignore(event: trickle.Event[int, str]) -> None:
    del event


def assign(tables: Tables, event: trickle.Event[int, str]) -> None:
    tables.counts[event.key] = 1


def change_in_place(tables: Tables, event: trickle.Event[int, str]) -> None:
    tables.lists[event.key].append(1)


@pytest.mark.parametrize("handle", [assign, change_in_place])
async def test_without_an_order_tables_are_read_only(
    mock_clock: MockClock, handle: Callable[[Tables, Any], None]
) -> None:
    """Another agent writes: to read what it has settled is all that this one may do."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    tables = Tables(ignore)
    tables.app, tables.source = app, source
    tables.counts = counts = app.table("counts", key=str, value=int, default=int)
    tables.lists = lists = app.table("lists", key=str, value=list[int], default=list)
    seen: list[int] = []

    @app.agent(source)
    async def write(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            counts[event.key] += event.value
            lists[event.key].append(event.value)

    @app.agent(source, concurrency=2, ordering="none", on_error=trickle.DeadLetter())
    async def read(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            await trio.sleep(1)
            seen.append(sum(counts.values()))
            assert sum(map(sum, lists.values())) == seen[-1]
            handle(tables, event)

    del write, read
    async with trickle.testing.run(app) as t:
        for value in range(3):
            await t.send(source, value, key=f"k{value}")
        await t.advance(10)
        await t.settled()
        assert counts["k2"] == 2
        assert lists["k2"] == [2]
        letters = t.broker.records("app-read-dead-letters")
    assert seen == [3, 3, 3]
    errors = [
        value or b"" for letter in letters for name, value in letter.headers if "error" in name
    ]
    name = "lists" if handle is change_in_place else "counts"
    assert errors[0].decode() == (
        f"table {name!r} can be read, not written, by agent 'read': its events keep no order "
        "(ordering='none'), so two could write one key at once; use ordering='key', or a function "
        "that returns that key"
    )


async def test_tables_of_other_agents_are_read_at_any_key(mock_clock: MockClock) -> None:
    """With ordering="key" as well: what it reads there has settled."""
    app = trickle.App("app")
    prices = app.topic("prices", key=str, value=int, partitions=1)
    orders = app.topic("orders", key=str, value=str, partitions=1)
    known = app.table("known", key=str, value=int, default=int)
    spent = app.table("spent", key=str, value=int, default=int)

    @app.agent(prices)
    async def remember(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            known[event.key] = event.value

    @app.agent(orders, concurrency=5)
    async def spend(stream: trickle.Stream[str, str]) -> None:
        async for event in stream.events():
            await trio.sleep(1)
            spent[event.key] += known[event.value]

    del remember, spend
    async with trickle.testing.run(app) as t:
        for number in range(3):
            await t.send(prices, 10**number, key=f"p{number}")
        await t.settled()
        for number in range(12):
            await t.send(orders, f"p{number % 3}", key=f"c{number % 2}")
        await t.advance(20)
        await t.settled()
        assert dict(spent.items()) == {"c0": 222, "c1": 222}


def nan(value: int) -> float:
    return float("nan")


PAIR = tuple[str, int]


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize(
    ("keys", "serializers", "table", "options", "sent"),
    [
        ((int, float), ("json", "json"), float, {}, (1, 1.0)),
        ((PAIR, PAIR), ("json", "msgpack"), PAIR, {}, (("x", 1), ("x", 1))),
        ((float, float), ("json", "json"), float, {"ordering": nan}, (1.0, 2.0)),
    ],
    ids=["numbers", "serializers", "nan"],
)
async def test_one_key_that_is_spelt_in_two_ways_is_seen(
    autojump_clock: MockClock,
    keys: tuple[Any, Any],
    serializers: tuple[str, str],
    table: Any,
    options: dict[str, Any],
    sent: tuple[Any, Any],
    reads: bool,
) -> None:
    """Both events are in hand at once, and no count of either is lost: the second one is refused.

    Their orders differ, so the lane has kept none of them back.
    """
    app = trickle.App("app")
    a, b = (
        app.topic(name, key=key, value=int, partitions=1, key_serializer=serializer)
        for name, key, serializer in zip("ab", keys, serializers, strict=True)
    )
    counts = app.table("counts", key=table, value=int, default=int, key_serializer="msgpack")
    told: list[str] = []

    @app.agent([a, b], concurrency=3, on_error=trickle.Skip(), **options)
    async def work(stream: trickle.Stream[int, Any]) -> None:
        async for event in stream.events():
            key = float("nan") if options else event.key
            try:
                before = counts[key] if reads else 0
                await trio.sleep(1)
                counts[key] = before + 1
            except UsageError as error:
                told.append(str(error))
                raise
            await trio.sleep(1)

    del work
    async with trickle.testing.run(app) as t:
        for _ in range(3):
            for topic, key in zip((a, b), sent, strict=True):
                await t.send(topic, 1, key=key)
        await t.advance(60)
        assert "spell in two ways" in told[0]
        done = 6 - len(told)
        assert list(counts.values()) == [done if reads else 1]
