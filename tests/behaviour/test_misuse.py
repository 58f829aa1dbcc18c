"""What is used wrongly is refused where it is used, in a sentence that says what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
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
