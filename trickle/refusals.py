"""Refusals: whether an event can be blamed for a record that was refused; pure."""

from __future__ import annotations

from collections.abc import Container, Iterable

from trickle.exceptions import RecordRefused, TopicError, TopicRefused, TrickleError
from trickle.snapshots import Snapshot

__all__ = ["PATIENCE_S", "Refusals"]

PATIENCE_S = 10.0
"""A broker that has just come back may not know a topic yet, or who may write to it."""

_FORGOTTEN_S = 120.0


class Refusals:
    """Judges refused records.

    A topic that was there when the app started, and takes no record at all, is no event's fault.
    The events run again, and where it lasts the Run ends, whatever the agents' policies. A topic of
    any other name is an event's doing.

    Args:
        topics: what the app was started with.
    """

    def __init__(self, topics: Container[str]) -> None:
        self._topics = topics
        self._seen: dict[str, tuple[float, float]] = {}  # when a topic refused first, and last

    def blame_topic(self, refused: RecordRefused) -> bool:
        """Tell whether the topic is at fault."""
        return isinstance(refused, TopicRefused) and refused.topic in self._topics

    def fault(self, taken: Snapshot, refused: RecordRefused, now: float) -> TrickleError | None:
        """Return what ends the Run.

        Args:
            taken: the commit that failed.
            refused: the record.
            now: seconds of any clock.
        """
        if not self.blame_topic(refused):
            # Nobody's but a timer's.
            return refused if taken.ticks and not (taken.events or taken.dirty) else None
        first, last = self._seen.get(refused.topic, (now, now))
        if now - last > _FORGOTTEN_S:
            first = now
        self._seen[refused.topic] = first, now
        if now - first < PATIENCE_S:
            return None
        made = TopicError(
            f"commits have failed for {now - first:.0f} s: {refused}. The app was started with "
            "this topic, so no event is blamed for it; their events run again when the app is "
            "started with the topic in order"
        )
        made.__cause__ = refused
        return made

    def passed(self, topics: Iterable[str]) -> None:
        """Some topics have taken records."""
        if self._seen:
            for topic in topics:
                self._seen.pop(topic, None)
