"""From where to where a changelog is read: pure, so that it can be tested without one.

A position means nothing where the changelog is another topic than the one that it was taken in,
where it lies beyond the end, or before what the changelog still holds.
"""

from __future__ import annotations

import math

import msgspec
from msgspec import structs

from trickle.stores.contract import Position
from trickle.transport.contract import Watermarks

__all__ = ["Plan", "plan_recovery"]


class Plan(msgspec.Struct, frozen=True):
    """What recovery does with one table.

    Attributes:
        start: the offset to read from.
        end: the offset to read up to.
        rebuild: why what is stored is dropped first; None where it is kept.
        proof: the record at ``start`` is stored, and has to be there.
        sure: records from here on do not count.
    """

    start: int
    end: int
    rebuild: str | None = None
    proof: bool = False
    sure: float = math.inf

    def until(self, end: int | None) -> Plan:
        """Return the plan where records count up to an end; None: all of them."""
        return (
            self if end is None else structs.replace(self, sure=max(self.start + self.proof, end))
        )


def plan_recovery(
    position: Position | None,
    topic_id: str,
    marks: Watermarks,
    *,
    markers: bool,
    follows: bool = False,
) -> Plan:
    """Decide from where to read a changelog.

    Args:
        position: what is stored; None: nothing.
        topic_id: the changelog's identity now.
        marks: its watermarks.
        markers: transactions end with markers, which take an offset: the one behind a commit's
            last record may be gone without a loss.
        follows: the changelog is read on beyond its end, so that a proof can be waited for.
    """
    low, high = marks
    if position is None:
        return Plan(low, high)
    if position.topic_id != topic_id:
        return Plan(low, high, "the changelog is another topic than the one it was taken from")
    if position.offset > high:
        return Plan(
            low, high, f"it goes up to {position.offset:,}, and the changelog ends at {high:,}"
        )
    if position.offset + markers < low:
        return Plan(
            low, high, f"it goes up to {position.offset:,}, and the changelog begins at {low:,}"
        )
    if position.old and low == 0 and position.offset + markers < high:
        return Plan(
            low, high, "it is older than the changelog remembers for what keys were deleted"
        )
    if markers and position.acknowledged and low == 0 < position.offset < high + follows:
        return Plan(position.offset - 1, high, proof=True)
    return Plan(max(position.offset, low), high)
