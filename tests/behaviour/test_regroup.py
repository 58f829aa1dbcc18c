"""Regrouping by functions that do not tell their types, and what fails on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from trio.testing import MockClock

import trickle
import trickle.testing


class Flight(trickle.Model):
    carrier: str
    month: int


async def test_a_lambda_may_return_any_key(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=3)
    regrouped: dict[str, Callable[[int], Any]] = {
        "int": lambda v: v % 3,
        "text": lambda v: str(v % 3),
        "tuple": lambda v: (v % 2, "x"),
        "bytes": lambda v: b"%d" % v,
        "none": lambda v: None,
    }
    seen: dict[str, set[Any]] = {name: set() for name in regrouped}

    def define(name: str) -> None:
        @app.agent(source.group_by(regrouped[name], name=name), name=name)
        async def work(stream: trickle.Stream[int]) -> None:
            async for key, value in stream.items():
                seen[name].add((key, value))

    for name in regrouped:
        define(name)
    async with trickle.testing.run(app) as t:
        for value in range(6):
            await t.send(source, value, key="k")
        await t.settled()
    assert seen == {
        name: {(function(value), value) for value in range(6)}
        for name, function in regrouped.items()
    }


async def test_keys_of_a_lambda_shard_a_table(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=Flight, partitions=3)
    sink = app.topic("sink", key=int, value=str, partitions=3)
    by_month = app.table("by_month", key=int, value=int, default=int)
    keys: list[int] = []

    @app.agent(source.group_by(lambda flight: flight.month, name="by_month"), sink=sink)
    async def count(stream: trickle.Stream[Flight]) -> Any:
        async for event in stream.events():
            keys.append(event.key)
            by_month[event.value.month] += 1
            yield event.value.carrier

    async with trickle.testing.run(app) as t:
        for month in (1, 2, 1, 12):
            await t.send(source, Flight("AA", month), key="AA")
        await t.settled()
        assert dict(by_month.items()) == {1: 2, 2: 1, 12: 1}
        assert sorted(e.key for e in t.sent(sink)) == sorted(keys) == [1, 1, 2, 12]


async def test_regrouped_twice(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=2)
    once = source.map(lambda v: {"n": v}).group_by("n", name="once")
    seen: list[tuple[object, object]] = []

    @app.agent(once.group_by(lambda v: str(v["n"]), name="twice"))
    async def work(stream: trickle.Stream[dict[str, int]]) -> None:
        async for pair in stream.items():
            seen.append(pair)

    async with trickle.testing.run(app) as t:
        await t.send(source, 7, key="k")
        await t.settled()
    assert seen == [("7", {"n": 7})]


REFUSED = "topic 'app-g-repartition', {}: JSON would give it back as something else: annotate {}"
VALUE = (
    "value: expected Any, got {'at': (1, 2)} of type dict, which UntypedValue cannot write",
    "the return type of the function before group_by, or give group_by(…, value_type=)",
)
KEY = (
    "key: expected Any, got [7] of type list, which UntypedKey cannot write",
    "the return type of group_by's function, or give group_by(…, key_type=)",
)


CASES: list[tuple[Callable[[int], Any], Callable[[Any], Any], tuple[str, str]]] = [
    (lambda v: {"at": (1, 2)}, lambda value: "k", VALUE),
    (lambda v: v, lambda v: [v], KEY),
]


@pytest.mark.parametrize(("make_value", "key", "told"), CASES)
async def test_what_json_would_change_is_refused(
    mock_clock: MockClock,
    make_value: Callable[[int], Any],
    key: Callable[[Any], Any],
    told: tuple[str, str],
) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=2)

    @app.agent(source.map(make_value).group_by(key, name="g"))
    async def work(stream: trickle.Stream[Any]) -> None:
        async for _ in stream:
            pass

    with pytest.RaisesGroup(
        pytest.RaisesExc(
            trickle.EncodeError, check=lambda error: str(error) == REFUSED.format(*told)
        ),
        flatten_subgroups=True,
    ):
        async with trickle.testing.run(app) as t:
            await t.send(source, 7, key="k")
            await t.settled()
