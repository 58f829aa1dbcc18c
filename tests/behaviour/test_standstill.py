"""Tests of agents that wait for what virtual time does not move: threads and sockets."""

from __future__ import annotations

import socket
import threading

import pytest
import trio
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.testing import standstill

REAL_S = 0.05


def spend(value: str) -> str:
    """Work in a thread for some real time."""
    threading.Event().wait(REAL_S)
    return value


def threaded(seen: list[str], limiter: trio.CapacityLimiter | None = None) -> tuple[
    trickle.App, trickle.Topic[str, str]
]:  # fmt: skip
    """Return an app whose agent works in a thread."""
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[str]) -> None:
        async for value in stream:
            seen.append(await trio.to_thread.run_sync(spend, value, limiter=limiter))

    return app, source


async def test_settled_waits_for_threads_of_agents(mock_clock: MockClock) -> None:
    seen: list[str] = []
    app, source = threaded(seen)
    async with trickle.testing.run(app) as t:
        await t.send(source, "a", key="k")
        await t.send(source, "b", key="k")
        await t.settled()
        assert seen == ["a", "b"]
        assert trio.current_time() == 0.0


async def test_settled_waits_for_threads_under_a_clock_that_jumps(
    autojump_clock: MockClock,
) -> None:
    seen: list[str] = []
    app, source = threaded(seen, trio.CapacityLimiter(1))  # nobody can count its tokens
    async with trickle.testing.run(app) as t:
        await t.send(source, "a", key="k")
        await t.settled()
        assert seen == ["a"]


async def test_time_stands_while_a_thread_works(mock_clock: MockClock) -> None:
    """Else an event that needs no virtual time at all would have run into its deadline."""
    seen: list[str] = []
    app, source = threaded(seen)
    async with trickle.testing.run(app) as t:
        await t.send(source, "a", key="k")
        await t.advance(100)
        assert seen == ["a"]
        await t.settled()


async def test_leaving_waits_for_the_event_in_a_thread(mock_clock: MockClock) -> None:
    seen: list[str] = []
    app, source = threaded(seen)
    async with trickle.testing.run(app) as t:
        await t.send(source, "a", key="k")
        await trio.testing.wait_all_tasks_blocked()
    assert seen == ["a"]


async def test_a_crash_waits_for_a_thread_that_cannot_be_given_up(mock_clock: MockClock) -> None:
    seen: list[str] = []
    app, source = threaded(seen)
    async with trickle.testing.run(app) as t:
        await t.send(source, "a", key="k")
        await trio.testing.wait_all_tasks_blocked()
        await t.crash()
        await t.settled()
    assert seen[-1] == "a"


async def test_settled_waits_for_a_socket_that_a_thread_answers(mock_clock: MockClock) -> None:
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)
    seen: list[bytes] = []
    pair = socket.socketpair()
    ours, theirs = trio.socket.from_stdlib_socket(pair[0]), pair[1]

    @app.agent(source)
    async def work(stream: trickle.Stream[str]) -> None:
        async for _ in stream:
            seen.append(await ours.recv(10))

    with ours, theirs:
        async with trickle.testing.run(app) as t:
            await t.send(source, "a", key="k")
            timer = threading.Timer(REAL_S, theirs.send, [b"pong"])
            timer.start()
            await t.settled()
            timer.join()
    assert seen == [b"pong"]


async def test_a_thread_that_does_not_end_is_not_waited_for_for_ever(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that an agent waits for, nor that of a task, which is waited for but once."""
    monkeypatch.setattr(standstill, "PATIENCE_S", REAL_S)
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)
    ended = threading.Event()

    @app.agent(source)
    async def work(stream: trickle.Stream[str]) -> None:
        async for _ in stream:
            await trio.to_thread.run_sync(ended.wait, abandon_on_cancel=True)

    @app.task
    async def reads() -> None:
        await trio.to_thread.run_sync(ended.wait, abandon_on_cancel=True)

    try:
        async with trickle.testing.run(app) as t:
            await t.advance(1)
            await t.send(source, "a", key="k")
            with pytest.raises(trickle.UsageError, match="real time for threads and sockets"):
                await t.settled()
            ended.set()
            await t.settled()
    finally:
        ended.set()


async def test_what_virtual_time_moves_is_told_at_once(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standstill, "PATIENCE_S", 1e9)
    app = trickle.App("app")
    source = app.topic("source", key=str, value=str, partitions=1)

    @app.agent(source)
    async def work(stream: trickle.Stream[str]) -> None:
        async for _ in stream:
            await trio.sleep(5)

    async with trickle.testing.run(app) as t:
        await t.send(source, "a", key="k")
        with pytest.raises(trickle.UsageError, match="nothing goes on by itself: agent 'work'"):
            await t.settled()
        await t.advance(5)
        await t.settled()
