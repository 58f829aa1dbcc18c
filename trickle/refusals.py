"""Refusals: whether an event can be blamed for a record that was refused; pure."""

from __future__ import annotations

from collections.abc import Container, Iterable

from trickle.exceptions import CommitFailed, RecordRefused, TopicError, TopicRefused, TrickleError
from trickle.snapshots import Snapshot

__all__ = ["PATIENCE_S", "Refusals"]

PATIENCE_S = 10.0
"""A broker that has just come back may not know a topic yet, or who may write to it."""

_STEP_S = 5.0  # what two refusals count at most, however far apart: it may have been well between
_FORGOTTEN_S = 3600.0


class Refusals:
    """Judges refused records.

    A topic that was there when the app started, and takes no record at all, is no event's fault.
    The events run again, and where it lasts the Run ends, whatever the agents' policies. A topic of
    any other name is an event's doing.

    Args:
        topics: what the app was started with.
        missing: those of them that are known to be gone; may change.
    """

    def __init__(self, topics: Container[str], missing: Container[str]) -> None:
        self._topics = topics
        self._missing = missing
        self._seen: dict[str, tuple[float, float]] = {}  # how long a topic has refused, and when

    def find(self, failure: CommitFailed, sent: Iterable[str]) -> RecordRefused | None:
        """Return the record that a commit failed by: said to be it, or sent to what is gone.

        Args:
            failure: of the commit; a client may wait in vain for a topic, and say no more.
            sent: the topics of its records.
        """
        if failure.refused is not None:
            return failure.refused
        for topic in sent:
            if topic in self._missing:
                return TopicRefused(f"topic {topic!r} was deleted, and is sent to", topic=topic)
        return None

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
        lasted, last = self._seen.get(refused.topic, (0.0, now))
        lasted = lasted + min(now - last, _STEP_S) if now - last < _FORGOTTEN_S else 0.0
        self._seen[refused.topic] = lasted, now
        if lasted < PATIENCE_S:
            return None
        made = TopicError(
            f"commits fail for more than {PATIENCE_S:.0f} s: {refused}. The app was started with "
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
