"""What an unkind user does: each of these once lost, doubled or hid something."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

import trickle
import trickle.testing


async def test_take_behind_flat_map_loses_no_value_of_an_event(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    table = app.table("table", key=str, value=list[int], default=list)
    lists = 0

    @app.agent(source, on_error=trickle.Retry(times=1, backoff=0))
    async def work(stream: trickle.Stream[int, str]) -> None:
        nonlocal lists
        async for values in stream.flat_map(lambda value: [value] * 3).take(2):
            lists += 1
            table["k"].extend(values)
            if lists == 2:  # half of it is of the first event, whose other values came before
                raise ValueError(values)

    async with trickle.testing.run(app) as t:
        for value in range(4):
            await t.send(source, value, key="k")
        await t.settled()
        assert table["k"] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


async def test_an_event_that_fails_in_its_own_block_leaves_no_trace(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    out = app.topic("out", value=int, partitions=1)
    table = app.table("table", key=str, value=list[int], default=list)

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            try:
                async with event:
                    table["k"].append(event.value)
                    out.send_nowait(event.value)
                    if event.value == 1:
                        raise ValueError(event.value)
            except ValueError:
                pass  # the user's own way to go on behind it

    async with trickle.testing.run(app) as t:
        for value in range(3):
            await t.send(source, value, key="k")
        await t.settled()
        assert table["k"] == [0, 2]
        assert [event.value for event in t.sent(out)] == [0, 2]


async def test_an_effect_behind_the_block_that_settled_its_event(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for event in stream.events():
            async with event:
                pass
            source.send_nowait(1)

    with pytest.RaisesGroup(
        pytest.RaisesExc(
            trickle.EventSettledError,
            match="^the event of 'work' that this work is part of has settled",
        ),
        flatten_subgroups=True,
    ):
        async with trickle.testing.run(app) as t:
            await t.send(source, 1)
            await t.settled()


POISON = b"{oops"


@pytest.mark.parametrize("policy", [trickle.Skip(), trickle.DeadLetter()])
async def test_the_policy_holds_for_records_that_cannot_be_regrouped(
    mock_clock: MockClock, policy: Any
) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    letters = app.topic("app-work-dead-letters", key=str, value=bytes, partitions=1)
    seen: list[int] = []

    def key(value: int) -> int:
        return 10 // value

    @app.agent(source.group_by(key, name="by"), on_error=policy)
    async def work(stream: trickle.Stream[int, int]) -> None:
        async for value in stream:
            seen.append(value)

    async with trickle.testing.run(app) as t:
        await t.send(source, 1, key="a")
        await t.send(source, POISON, key="b", raw=True)
        await t.send(source, 0, key="c")
        await t.send(source, 2, key="d")
        await t.settled()
        assert seen == [1, 2]
        expected = [("b", POISON), ("c", b"0")] if policy == trickle.DeadLetter() else []
        assert [(event.key, event.value) for event in t.sent(letters)] == expected


async def test_a_regrouping_stops_where_one_of_its_readers_would(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    regrouped = source.group_by(str, name="by")

    @app.agent(regrouped, on_error=trickle.Skip())
    async def lenient(stream: trickle.Stream[int, str]) -> None:
        async for _ in stream:
            pass

    @app.agent(regrouped)
    async def strict(stream: trickle.Stream[int, str]) -> None:
        async for _ in stream:
            pass

    with pytest.RaisesGroup(trickle.DecodeError, flatten_subgroups=True):
        async with trickle.testing.run(app) as t:
            await t.send(source, POISON, raw=True)
            await t.settled()


async def test_a_dead_letter_near_the_size_limit_leaves_out_the_traceback(
    mock_clock: MockClock,
) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    letters = app.topic("letters", value=bytes, partitions=1)

    @app.agent(source, on_error=trickle.DeadLetter(letters))
    async def work(stream: trickle.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with trickle.testing.run(app) as t:
        await t.send(source, b"x" * 1_047_900, raw=True)
        await t.settled()
        names = [name for name, _ in t.sent(letters)[0].headers]
        assert "trickle-offset" in names
        assert "trickle-traceback" not in names


async def test_an_event_shows_what_a_person_looks_for(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)

    async with trickle.testing.run(app) as t:
        await t.send(source, 7, key="k", timestamp=1.5, headers={"h": b"x"})
        (event,) = t.sent(source)
        assert repr(event) == "<Event source [0] at offset 0: key='k', value=7>"


def _agent(**given: Any) -> None:
    app = trickle.App("app")

    @app.agent(app.topic("source", value=int), name="work", **given)
    async def work(stream: trickle.Stream[int]) -> Any:  # pyright: ignore[reportUnusedFunction]
        async for value in stream:
            yield value


def _topic(**given: Any) -> None:
    trickle.App("app").topic("source", **given)


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (
        _agent,
        {"on_error": trickle.Skip},
        (
            "agent 'work': on_error= is <class 'trickle.policies.Skip'>, which is no policy: use "
            "Stop(), Skip(), Retry(…) or DeadLetter(…)"
        ),
    ),
    (
        _agent,
        {"sink": 3},
        "agent 'work': sink= has 3, which is no sink: give topics or functions",
    ),
    (trickle.Retry, {"times": 1.5}, "Retry(times=1.5): times must be a whole number, 0 or more"),
    (trickle.Retry, {"times": -1}, "Retry(times=-1): times must be a whole number, 0 or more"),
    (
        trickle.Retry,
        {"then": trickle.Retry()},
        (
            "Retry(then=Retry(times=3, backoff=1.0, then=Stop())): then must be Stop(), Skip() or "
            "DeadLetter(…)"
        ),
    ),
    (
        _topic,
        {"partitions": "3"},
        "topic 'source': partitions='3' is not a whole number, 1 or more",
    ),
    (_topic, {"replicas": 0}, "topic 'source': replicas=0 is not a whole number, 1 or more"),
    (_topic, {"config": {"a": 1}}, "topic 'source': config has 'a': 1, but it maps str to str"),
]


@pytest.mark.parametrize(("define", "given", "message"), WRONG)
def test_a_wrong_definition_is_refused_where_it_stands(
    define: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(trickle.DefinitionError) as caught:
        define(**given)
    assert str(caught.value) == message


WRONG_SENDS: list[tuple[dict[str, Any], str]] = [
    ({"timestamp": float("nan")}, "timestamp=nan is no time: use POSIX seconds or a datetime"),
    ({"timestamp": float("inf")}, "timestamp=inf is no time: use POSIX seconds or a datetime"),
    ({"timestamp": "now"}, "timestamp='now' is no time: use POSIX seconds or a datetime"),
    (
        {"timestamp": 2.0**62},
        "timestamp=4.611686018427388e+18 is no time: its milliseconds do not fit into 64 bits",
    ),
    ({"headers": [("a",)]}, "headers are a mapping, or pairs of a name and a value: got ('a',)"),
    ({"headers": "xy"}, "headers are a mapping, or pairs of a name and a value: got 'x'"),
    ({"headers": 5}, "headers are a mapping, or pairs of a name and a value: got 5"),
    # Kafka's client would end the process by such a name.
    ({"headers": {"\ud800": b""}}, "header '\\ud800': b'' is no text of UTF-8"),
    ({"headers": {"a\0b": b""}}, "header 'a\\x00b': a name with a NUL would be cut there"),
    (
        {"partition": 1 << 31},
        "topic 'source': partition=2147483648 is not a whole number, 0 or more",
    ),
    ({"headers": {"a": "\ud800"}}, "header 'a': '\\ud800' is no text of UTF-8"),
    ({"partition": "x"}, "topic 'source': partition='x' is not a whole number, 0 or more"),
    ({"partition": True}, "topic 'source': partition=True is not a whole number, 0 or more"),
]


@pytest.mark.parametrize(("given", "message"), WRONG_SENDS)
async def test_what_cannot_be_sent_is_refused_in_a_sentence(
    mock_clock: MockClock, given: dict[str, Any], message: str
) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    async with trickle.testing.run(app):
        with pytest.raises(trickle.TrickleError) as caught:
            await source.send(1, **given)
    assert str(caught.value) == message


@pytest.mark.parametrize("policy", [trickle.DeadLetter(), trickle.Skip()])
async def test_a_group_that_fails_is_only_what_a_filter_let_through(
    mock_clock: MockClock, policy: trickle.DeadLetter | trickle.Skip
) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    letters = app.topic("app-work-dead-letters", value=bytes, partitions=1)
    lists: list[list[int]] = []

    @app.agent(source, on_error=policy)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for values in stream.filter(lambda value: value % 2 == 0).take(3):
            if values[0] == 0:
                raise ValueError(values)
            lists.append(values)

    async with trickle.testing.run(app) as t:
        await t.send(source, 0)
        await t.send(source, b"{oops", raw=True)
        for value in range(1, 12):
            await t.send(source, value)
        await t.settled()  # the last record is passed over: nothing waits for it
        buried = [b"0", b"{oops", b"2", b"4"] if isinstance(policy, trickle.DeadLetter) else []
        assert [event.value for event in t.sent(letters)] == buried
    assert lists == [[6, 8, 10]]


async def test_a_predicate_that_fails_within_a_group_has_its_record_in_it(
    mock_clock: MockClock,
) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    letters = app.topic("app-work-dead-letters", value=bytes, partitions=1)
    lists: list[list[int]] = []

    @app.agent(source, on_error=trickle.DeadLetter())
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for values in stream.filter(lambda value: 6 % value).take(2):
            lists.append(values)

    async with trickle.testing.run(app) as t:
        for value in (4, 1, 0, 5, 7, 2):
            await t.send(source, value)
        await t.settled()
        assert [event.value for event in t.sent(letters)] == [b"4", b"0"]
    assert lists == [[5, 7]]


async def test_a_group_behind_flat_map_is_the_events_that_have_a_value_in_it(
    mock_clock: MockClock,
) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=list[int], partitions=1)
    letters = app.topic("app-work-dead-letters", value=bytes, partitions=1)

    @app.agent(source, on_error=trickle.DeadLetter())
    async def work(stream: trickle.Stream[list[int], str]) -> None:
        def values(value: list[int]) -> list[int]:
            return value

        async for group in stream.flat_map(values).filter(lambda value: value > 0).take(2):
            raise ValueError(group)

    async with trickle.testing.run(app) as t:
        for value in ([], [-1], [1, -1], [], [-1, 2], [-1, -2], []):
            await t.send(source, value)
        await t.settled()
        assert [event.value for event in t.sent(letters)] == [b"[1,-1]", b"[-1,2]"]


async def test_another_apps_table_cannot_be_read_here(mock_clock: MockClock) -> None:
    app, other = trickle.App("app"), trickle.App("other")
    source = app.topic("source", key=str, value=int, partitions=1)
    table = other.table("table", key=str, value=int, default=int)
    same_name = other.table("own", key=str, value=int, default=int)
    app.table("own", key=str, value=int, default=int)
    told: list[str] = []

    def look() -> None:
        reads = (lambda: table["a"], lambda: table.get("a"), lambda: "a" in table)
        for read in (*reads, lambda: len(table), lambda: list(table), lambda: same_name["a"]):
            with pytest.raises(trickle.UsageError) as caught:
                read()
            told.append(str(caught.value))

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for _ in stream:
            look()

    async with trickle.testing.run(app) as t:
        await t.send(source, 1)
        await t.settled()
        look()
        with pytest.raises(trickle.UsageError):
            await table.query("a")
    assert len(told) == 12
    assert told[0] == (
        "table 'table' is not one of the app that runs here: read it inside "
        "`async with app.run():` of its own app, 'other', or from the shell by `trickle get`"
    )


async def test_setdefault_with_none_is_none(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    table = app.table("table", key=str, value=int | None)
    found: list[int | None] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for _ in stream:
            found.append(table.setdefault("a", None))
            found.append(table.setdefault("a", 2))
            found.append(table.setdefault("a", None))

    async with trickle.testing.run(app) as t:
        await t.send(source, 1)
        await t.settled()
    assert found == [None, 2, 2]


async def test_a_whole_number_in_a_table_of_floats_is_found_again(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    table = app.table("table", key=float, value=float)

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for _ in stream:
            table[1] = 2
            assert table[1.0] == 2.0

    async with trickle.testing.run(app) as t:
        await t.send(source, 1)
        await t.settled()
        assert dict(table) == {1.0: 2.0}
        assert table[1] == 2.0


async def test_values_of_any_type_travel_as_json(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=Any, value=object, partitions=1)
    table = app.table("table", key=str, value=Any)

    @app.agent(source)
    async def work(stream: trickle.Stream[object, Any]) -> None:
        async for key, value in stream.items():
            table[str(key)] = value

    async with trickle.testing.run(app) as t:
        await t.send(source, {"a": [1, None]}, key=1)
        await t.settled()
        assert dict(table) == {"1": {"a": [1, None]}}


async def test_a_removed_key_that_is_read_as_a_default_stays_removed(
    mock_clock: MockClock,
) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    table = app.table("table", key=str, value=list[int], default=list)

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for value in stream:
            if value == 0:
                table["a"] = [1]
            else:
                del table["a"]
                assert table["a"] == []
                assert "a" not in table

    async with trickle.testing.run(app) as t:
        await t.send(source, 0)
        await t.settled()
        assert dict(table) == {"a": [1]}
        await t.send(source, 1)
        await t.settled()
        assert dict(table) == {}
        await t.crash()
        assert dict(table) == {}
