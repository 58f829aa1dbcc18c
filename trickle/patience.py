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


async def patiently(
    call: Callable[[], Awaitable[T]], patient: Callable[[], bool] = lambda: True
) -> T:
    """Make a call until the broker answers.

    Args:
        patient: whether a broker that is away is waited for; else it is an error.
    """
    said = False
    while True:
        try:
            return await call()
        except BrokerUnavailable as error:
            if not patient():
                raise
            if not said:
                logger.warning("waiting for the broker: %s", error)
            said = True
            await trio.sleep(BROKER_PAUSE_S)
