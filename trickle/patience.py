"""Calls that wait for a broker that is away."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from trickle.exceptions import BrokerUnavailable

__all__ = ["BROKER_PAUSE_S", "patiently"]

logger = logging.getLogger("trickle.conductor")

BROKER_PAUSE_S = 1.0

T = TypeVar("T")


async def patiently(call: Callable[[], Awaitable[T]], started: trio.Event) -> T:
    """Make a call until the broker answers; only before the start is one that is away an error."""
    said = False
    while True:
        try:
            return await call()
        except BrokerUnavailable as error:
            if not started.is_set():
                raise
            if not said:
                logger.warning("waiting for the broker: %s", error)
            said = True
            await trio.sleep(BROKER_PAUSE_S)
