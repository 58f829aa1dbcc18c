"""What is used wrongly is refused where it is used, in a sentence that says what to write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.transport.memory import MemoryBroker


async def in_an_event(do: Callable[[trickle.Event[str, str]], object]) -> str:
    """Return what the user is told who does this in an event."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)
    told: list[str] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[str, str]) -> None:
        async for event in stream.events():
            with pytest.raises(trickle.UsageError) as raised:
                do(event)
            told.append(str(raised.value))

    async with trickle.testing.run(app) as t:
        await t.send(source, "a", key="k")
        await t.settled()
    (sentence,) = told
    return sentence


async def test_what_is_called_after_a_commit_is_a_function(mock_clock: MockClock) -> None:
    number: Any = 3
    assert await in_an_event(lambda event: event.after_commit(number)) == (
        "event.after_commit(3): that is no function: give one without arguments, as in "
        "event.after_commit(partial(notify, value))"
    )


@pytest.mark.parametrize("testing", [True, False], ids=["testing", "run"])
async def test_what_is_defined_while_the_app_runs_is_refused(
    mock_clock: MockClock, testing: bool, tmp_path: Path
) -> None:
    app = trickle.App("app", broker="memory://misuse", data_dir=tmp_path, store="memory://")
    source = app.topic("source", key=str, value=str, partitions=1)

    async def agent(stream: trickle.Stream[str]) -> None:
        async for _ in stream:
            pass

    async def function() -> None: ...

    class Late(trickle.Service):
        async def main(self, task_status: trio.TaskStatus[Any]) -> None: ...

    definitions: dict[str, Callable[[], object]] = {
        "agent 'agent'": lambda: app.agent(source)(agent),
        "timer 'function'": lambda: app.timer(1)(function),
        "task 'function'": lambda: app.task(function),
        "service 'Late'": lambda: app.service(Late),
        "table 'table'": lambda: app.table("table", key=str, value=int),
    }
    run: AbstractAsyncContextManager[object] = trickle.testing.run(app) if testing else app.run()
    async with run:
        for what, define in definitions.items():
            with pytest.raises(trickle.ConfigurationError) as raised:
                define()
            assert str(raised.value) == (
                f"{what} is defined while app 'app' runs, which would not know of it: define it "
                "before the run begins, beside the app's other definitions"
            )
        app.topic("target", key=str, value=str)  # which may exist, and be sent to
    for define in definitions.values():
        define()


async def test_a_source_cannot_be_iterated(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)
    for what in (source, source.group_by(str, name="g")):
        with pytest.raises(trickle.UsageError, match="is a definition and cannot be iterated: wri"):
            async for _ in what:  # pyright: ignore[reportUnknownVariableType, reportGeneralTypeIssues]
                pass


async def test_events_of_several_calls_cannot_be_numbered(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)

    @app.agent(source, concurrency=3)
    async def work(stream: trickle.Stream[str]) -> None:
        async for _ in stream.enumerate():
            pass

    del work
    with pytest.raises(trickle.UsageError, match=r"agent 'work': stream.enumerate\(\) numbers"):
        async with trickle.testing.run(app) as t:
            await t.send(source, "a", key="k")
            await t.settled()


async def test_a_take_takes_whole_numbers(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)
    wrong: list[Any] = ["x", 1.5, True, 0]
    told: list[str] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[str]) -> None:
        for n in wrong:
            with pytest.raises(trickle.UsageError) as raised:
                stream.take(n)
            told.append(str(raised.value))
        async for _ in stream:
            pass

    async with trickle.testing.run(app) as t:
        await t.send(source, "a", key="k")
        await t.settled()
    assert told == [f"take(n={n!r}): n must be a whole number, 1 or more" for n in wrong]


async def test_what_is_no_pair_is_named_by_send_all(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)
    async with trickle.testing.run(app) as t:
        wrong: list[Any] = [("k",), 1, "kv", ("k", "v", 1.0, 2)]
        for item in wrong:
            with pytest.raises(trickle.UsageError) as raised:
                await source.send_all([("k", "v"), item])
            assert str(raised.value) == (
                "topic 'source': send_all takes (key, value) or (key, value, timestamp), but item "
                f"1 is {item!r}"
            )
        nothing: Any = 3
        with pytest.raises(trickle.UsageError, match="topic 'source': send_all takes pairs, not 3"):
            await source.send_all(nothing)
        assert await source.send_all([("k", "v"), ("k", "v", 1.0)]) == 2
        await t.settled()


async def test_a_partitioner_that_fails_is_named(mock_clock: MockClock) -> None:
    app = trickle.App("app")

    def partitioner(key: bytes | None, partitions: int) -> int:
        raise ValueError("no idea")

    source = app.topic("source", key=str, value=str, partitions=1, partitioner=partitioner)
    async with trickle.testing.run(app) as t:
        with pytest.raises(trickle.UsageError) as raised:
            await source.send("a", key="k")
        await t.settled()
    assert str(raised.value) == (
        "topic 'source': its partitioner failed for the key b'k': ValueError('no idea')"
    )
    assert isinstance(raised.value.__cause__, ValueError)


async def test_another_apps_table_is_not_written(mock_clock: MockClock) -> None:
    table = trickle.App("other").table("table", key=str, value=int, default=int)
    told = await in_an_event(lambda event: table.__setitem__("k", 1))
    assert told.startswith("table 'table' is not one of the app that runs here: ")


async def test_setdefault_is_a_write_even_where_the_key_is(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)
    table = app.table("table", key=str, value=str)

    @app.agent(source)
    async def work(stream: trickle.Stream[str, str]) -> None:
        async for value in stream:
            assert table.setdefault("k", value) == "a"

    async with trickle.testing.run(app) as t:
        await t.send(source, "a", key="k")
        await t.send(source, "b", key="k")
        await t.settled()
        assert table["k"] == "a"
        for key in ("k", "missing"):
            with pytest.raises(trickle.TrickleError, match="'table' can be read here, not written"):
                table.setdefault(key, "b")


async def test_one_partition_is_not_several(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[str]) -> None:
        async for _ in stream:
            pass

    del work
    with caplog.at_level("INFO", "trickle"):
        async with trickle.testing.run(app) as t:
            await t.settled()
    assert "1 partition assigned, open after" in caplog.text


HELPERS: dict[str, Callable[[Any, Any], Any]] = {
    "crash(5): there is no such worker, only: 0": lambda t, _: t.crash(5),
    "crash(-1): there is no such worker, only: 0": lambda t, _: t.crash(-1),
    "rebalance(workers=-1): give a whole number, 0 or more": lambda t, _: t.rebalance(-1),
    "rebalance(workers=1.5): give a whole number, 0 or more": lambda t, _: t.rebalance(1.5),
    "advance(seconds) must be a finite number of seconds, not nan": (
        lambda t, _: t.advance(float("nan"))
    ),
    "advance(seconds) must be at least 0 seconds, not -1": lambda t, _: t.advance(-1),
    "t.sent('source'): that is no topic: give one of app.topic(…)": lambda t, _: t.sent("source"),
    "t.send('source'): that is no topic: give one of app.topic(…)": (
        lambda t, _: t.send("source", "a")
    ),
    "testing.run('app'): that is no app: give a trickle.App": (
        lambda _, __: trickle.testing.run(cast("Any", "app")).__aenter__()
    ),
    "testing.run(workers=0): give a whole number, 1 or more": (
        lambda _, app: trickle.testing.run(app, workers=0).__aenter__()
    ),
    "testing.run(broker=): a test has a broker and stores of its own, in memory, and no web "
    "server: leave it out": (
        lambda _, app: trickle.testing.run(app, broker="memory://").__aenter__()
    ),
}


@pytest.mark.parametrize("sentence", HELPERS)
async def test_helpers_of_tests_say_what_is_wrong(mock_clock: MockClock, sentence: str) -> None:
    app = trickle.App("app")
    app.topic("source", key=str, value=str, partitions=1)
    async with trickle.testing.run(app) as t:
        with pytest.raises(trickle.UsageError) as raised:
            await HELPERS[sentence](t, app)
        await t.settled()
    assert str(raised.value) == sentence


@pytest.mark.parametrize("wrong", ["agent", "table"])
async def test_what_cannot_work_declares_nothing(wrong: str) -> None:
    """Else the topics stand in the way of what the message says to do."""
    name = f"refused-{wrong}"
    app = trickle.App("app", broker=f"memory://{name}")
    two = app.topic("two", value=str, partitions=2)
    three = app.topic("three", value=str, partitions=3)

    async def work(stream: trickle.Stream[str]) -> None:
        async for _ in stream:
            pass

    if wrong == "agent":
        app.agent([two, three], name="both")(work)
    else:
        app.table("counts", key=str, value=int)
        app.agent(two, name="one")(work)
        app.agent(three, name="other")(work)
    with pytest.raises(trickle.DefinitionError, match="two has 2"):
        async with app.run():
            pass
    assert MemoryBroker.named(name).topics() == {}


async def test_nothing_is_settled_where_no_worker_runs(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)
    seen: list[int] = []

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        async for value in stream:
            seen.append(value)

    del work
    async with trickle.testing.run(app) as t:
        await t.rebalance(workers=0)
        await t.settled()
        await t.send(source, 1)
        with pytest.raises(trickle.UsageError, match=r"topic source \[0\] .* no worker runs"):
            await t.settled()
        await t.rebalance(workers=1)
        await t.settled()
    assert seen == [1]


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("function", [False, True])
async def test_what_is_yielded_belongs_to_an_event(
    mock_clock: MockClock, by_hand: bool, concurrency: int, function: bool
) -> None:
    """Behind a block that bounds the event, or behind the loop: nothing would be sent with it."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)

    @app.agent(source, sink=print if function else app.topic("out", key=str, value=int),
               concurrency=concurrency)  # fmt: skip
    async def work(stream: trickle.Stream[str, str]) -> AsyncIterator[int]:
        count = 0
        async for event in stream.events():
            if by_hand:
                async with event:
                    count += 1
                yield count
        yield count

    del work
    with pytest.RaisesGroup(trickle.EventSettledError, flatten_subgroups=True) as raised:
        async with trickle.testing.run(app) as t:
            await t.send(source, "a", key="k")
            await t.settled()
            await t.rebalance(workers=2)
            await t.rebalance(workers=1)
    assert "'work' yielded a value while it had no event in hand" in str(raised.value.exceptions)


@pytest.mark.parametrize("batches", [False, True])
async def test_what_is_gathered_is_not_gathered_again(mock_clock: MockClock, batches: bool) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[int]) -> None:
        flat = stream.take(2, within=1).flat_map(lambda values: values)
        async for _ in flat.batches() if batches else flat.take(2):
            pass

    del work
    with pytest.raises(trickle.UsageError, match="one of them is all that a stream can have"):
        async with trickle.testing.run(app):
            pass


async def test_an_error_between_two_events_names_its_agent(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", value=int, partitions=1)

    @app.agent(source, on_error=trickle.Skip())
    async def work(stream: trickle.Stream[int]) -> None:
        async for event in stream.events():
            async with event:
                pass
            raise LookupError

    del work
    with pytest.RaisesGroup(LookupError, flatten_subgroups=True) as raised:
        async with trickle.testing.run(app) as t:
            await t.send(source, 1)
            await trio.sleep(1)
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert error.__notes__ == ["agent 'work' failed between two events"]


async def test_each_error_of_a_test_tells_its_seed(mock_clock: MockClock) -> None:
    with pytest.raises(LookupError) as raised:
        async with trickle.testing.run(trickle.App("app"), seed=77):
            raise LookupError
    assert raised.value.__notes__ == ["trickle.testing.run(…, seed=77)"]


async def test_a_null_hides_no_record_of_a_topic_whose_type_has_none(
    mock_clock: MockClock,
) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=int, partitions=1)
    async with trickle.testing.run(app) as t:
        await t.send(source, 1, key="k")
        await t.send(source, cast("Any", None), key="k")
        await t.send(source, 2, key="k")
        assert [event.value for event in t.sent(source)] == [1, None, 2]


async def test_a_table_that_two_counts_could_shard_is_told_the_topics_that_agents_read(
    mock_clock: MockClock,
) -> None:
    app = trickle.App("app")
    wide = app.topic("wide", key=str, value=str, partitions=4)
    narrow = app.topic("narrow", key=str, value=str, partitions=2)
    app.table("table", key=str, value=int)

    async def work(stream: trickle.Stream[str]) -> None:
        async for _ in stream:
            pass

    app.agent(wide.group_by(str, name="again"), name="grouped")(work)
    app.agent(narrow, name="plain")(work)
    with pytest.raises(trickle.DefinitionError) as raised:
        async with trickle.testing.run(app):
            pass
    assert str(raised.value) == (
        "table 'table': which topic's partitions shard it? The agents' sources differ: "
        "app-again-repartition has 4, narrow has 2; name one by app.table(…, source=)"
    )
