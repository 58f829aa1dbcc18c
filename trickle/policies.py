"""What happens to an event that fails, and to a record that cannot be decoded: one policy for both.

A failed event leaves no trace, whatever the policy: what it sent and wrote is undone first.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from trickle.exceptions import DefinitionError
from trickle.topics import Topic
from trickle.types import Duration
from trickle.utils.durations import seconds
from trickle.utils.names import check_name
from trickle.utils.values import is_whole

__all__ = ["DeadLetter", "Policy", "Retry", "Skip", "Stop"]


class Stop(msgspec.Struct, frozen=True):
    """Let the error reach the worker, which commits what has settled and exits non-zero."""


class Skip(msgspec.Struct, frozen=True):
    """Log the event with its coordinates, count it, and go on behind it."""


class DeadLetter(msgspec.Struct, frozen=True):
    """Send the record as it came to a topic of dead letters, and go on behind it.

    Headers name the error, its traceback, the agent, and where and when the record came from; the
    letter's own time is now. It and the position are committed together.

    Args:
        topic: ``{app}-{agent}-dead-letters`` by default.
    """

    topic: Topic[Any, Any] | str | None = None

    def __post_init__(self) -> None:
        if self.topic is not None and not isinstance(self.topic, Topic):
            check_name(self.topic, what="DeadLetter(…): a topic, or its name,")


class Retry(msgspec.Struct, frozen=True):
    """Call the agent's function anew with the same event.

    A record that cannot be decoded goes to ``then`` at once: it will not become readable.

    Args:
        times: retries, not counting the first attempt.
        backoff: seconds before the first retry, doubled for each further one, up to a minute.
        then: what to do when the last one fails.
    """

    times: int = 3
    backoff: Duration = 1.0
    then: Stop | Skip | DeadLetter = Stop()

    def __post_init__(self) -> None:
        if not is_whole(self.times, at_least=0):
            raise DefinitionError(
                f"Retry(times={self.times!r}): times must be a whole number, 0 or more"
            )
        seconds(self.backoff, what="Retry(backoff=…)")
        if not isinstance(self.then, Stop | Skip | DeadLetter):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(
                f"Retry(then={self.then!r}): then must be Stop(), Skip() or DeadLetter(…)"
            )

    def pause_s(self, attempt: int) -> float:
        """Return the seconds to wait before a retry, counted from 1."""
        base = seconds(self.backoff, what="Retry(backoff=…)")
        return min(base * 2.0 ** min(attempt - 1, 30), 60.0) if base < 60 else base


Policy: TypeAlias = Stop | Skip | Retry | DeadLetter
