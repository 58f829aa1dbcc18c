"""Calls of the client that may never return, whatever timeout they were given.

``send_offsets_to_transaction`` was seen to hang for ever when the broker was killed while it ran,
long after the broker was back. Such a call cannot be interrupted; it can only be left behind, with
its thread and its client.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from confluent_kafka import KafkaError, KafkaException

from trickle.transport.kafka.errors import error_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Caller"]

_RETRY_PAUSE = 0.05  # seconds between tries of a call that fails at once
_TIMED_OUT = KafkaError._TIMED_OUT  # pyright: ignore[reportPrivateUsage]

if TYPE_CHECKING:
    _Answer: TypeAlias = "queue.SimpleQueue[BaseException | None]"
    _Call: TypeAlias = tuple[Callable[..., object], tuple[Any, ...], _Answer]


def _given_up() -> KafkaException:
    # A new one each time: one that is raised again and again keeps the frames, and their clients.
    return KafkaException(KafkaError(_TIMED_OUT, "nobody waits for this call any more"))


class Caller:
    """A thread for one client's blocking calls; a call that hangs ends its use."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()  # one at a time
        self._answer: _Answer = queue.SimpleQueue()
        self._given_up = False
        threading.Thread(target=self._main, name="trickle-kafka-calls", daemon=True).start()

    def call(self, deadline: float, fn: Callable[..., object], *args: Any) -> None:
        """Call ``fn(*args, seconds left)``, again while the client says that it may help.

        Raises:
            KafkaException: what the client says at last, or a timeout where it says nothing.
        """
        while True:
            left = max(deadline - time.monotonic(), 0.001)
            answer: _Answer = queue.SimpleQueue()
            self._answer = answer
            self.check()
            self._calls.put((fn, (*args, left), answer))
            try:
                raised = answer.get(timeout=left + _RETRY_PAUSE)
            except queue.Empty:
                raise KafkaException(KafkaError(_TIMED_OUT, "the call did not return")) from None
            if raised is None:
                return
            if not isinstance(raised, KafkaException):
                raise raised
            error = error_of(raised)
            self.check()
            final = error.fatal() or error.txn_requires_abort() or not error.retriable()
            if final or time.monotonic() >= deadline:
                raise raised
            time.sleep(_RETRY_PAUSE)

    def give_up(self) -> None:
        """End the call that is under way, and any later one, by an error; from any thread."""
        self._given_up = True
        self._answer.put(_given_up())

    def check(self) -> None:
        """Raise where the calls were given up.

        Raises:
            KafkaException: they were.
        """
        if self._given_up:
            raise _given_up()

    def end(self) -> None:
        """Let the thread end once it is free."""
        self._calls.put(None)

    def _main(self) -> None:
        while (request := self._calls.get()) is not None:
            fn, args, answer = request
            try:
                fn(*args)
            except BaseException as error:  # noqa: BLE001 - raised where it was called
                answer.put(error)
            else:
                answer.put(None)
