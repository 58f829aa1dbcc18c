"""What is used wrongly is refused where it is used, in a sentence that says what to write."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing


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
