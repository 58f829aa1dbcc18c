"""Closing clients that may hang.

With a dead or stopped broker ``Consumer.close()`` takes 2 to 40 s and ``Producer.close()`` flushes
without a limit. So a client that is of no more use is closed in a daemon thread: nobody waits for
it, and it cannot keep the process.
"""

from __future__ import annotations

import logging
import threading
import warnings
from typing import Protocol

from confluent_kafka import KafkaException

__all__ = ["bury"]

logger = logging.getLogger("trickle.transport.kafka")

# A failed transaction cannot be aborted: the client warns of what is the very reason to close it.
_NO_ABORT = "Producer abort_transaction failed during close"
warnings.filterwarnings("ignore", _NO_ABORT, RuntimeWarning)


class _Closable(Protocol):
    def close(self) -> object: ...


def bury(client: _Closable) -> None:
    """Close a client in a thread that nobody waits for."""
    threading.Thread(target=_close, args=(client,), name="trickle-kafka-close", daemon=True).start()


def _close(client: _Closable) -> None:
    try:
        client.close()
    except (KafkaException, RuntimeWarning, SystemError) as error:
        # Its last transaction failed, which was said where it mattered. Where a filter makes an
        # error of the warning above, the client itself stumbles over it: SystemError.
        logger.debug("while a client was closed: %r", error)
