"""The one error of a block comes out as itself; what runs beside it comes in groups."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from trickle.utils.groups import single_errors


@asynccontextmanager
async def beside(start: Callable[[], Awaitable[None]]) -> AsyncGenerator[trio.Nursery, None]:
    with single_errors() as guard:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            await start()
            with guard.block():
                yield inner
            outer.cancel_scope.cancel()


async def nothing() -> None:
    await trio.lowlevel.checkpoint()


async def fail() -> None:
    raise ValueError("beside")


async def test_what_keeps_a_block_from_beginning() -> None:
    with pytest.raises(ValueError, match="beside"):
        async with beside(fail):
            raise AssertionError("never entered")


async def test_what_the_block_raises() -> None:
    with pytest.raises(KeyError):
        async with beside(nothing):
            raise KeyError("own")


async def test_what_fails_beside_the_block() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with beside(nothing) as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()
    assert caught.group_contains(ValueError, match="beside")
