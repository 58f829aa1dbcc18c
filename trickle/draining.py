"""How lanes end: the event in hand is finished, or has not happened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from trickle.streams import Lane

__all__ = ["cancel", "drain"]

logger = logging.getLogger("trickle.conductor")

CANCEL_TIMEOUT_S = 2.0


async def drain(lanes: Sequence[Lane], timeout: float, wake: Callable[[], None]) -> list[str]:
    """Let each lane finish the event in hand; return which ones did not within so many seconds.

    Args:
        wake: wakes those that wait for a commit's room.
    """
    for lane in lanes:
        lane.drain()
    wake()
    with trio.move_on_after(timeout):
        for lane in lanes:
            await lane.ended.wait()
    late = [lane for lane in lanes if not lane.ended.is_set()]
    for lane in late:
        logger.warning(
            "agent %s, partition %d, did not finish its event within drain_timeout=%g s: "
            "cancelled, the event runs again", lane.agent, lane.partition, timeout,
        )  # fmt: skip
    return [f"{lane.agent}[{lane.partition}]" for lane in late]


async def cancel(lanes: Sequence[Lane]) -> None:
    """End lanes at once: whatever their agents still do has no effect, should they not notice."""
    for lane in lanes:
        if not lane.ended.is_set():
            lane.abandon()
            lane.scope.cancel()
    with trio.move_on_after(CANCEL_TIMEOUT_S):
        for lane in lanes:
            await lane.ended.wait()
    for lane in lanes:
        if not lane.ended.is_set():
            logger.error(
                "agent %s, partition %d, resists its cancellation (a shielded scope?)",
                lane.agent, lane.partition,
            )  # fmt: skip
