"""Closing clients that may hang.

With a dead or stopped broker ``Consumer.close()`` takes 2 to 40 s and ``Producer.close()`` flushes
without a limit. So a client that is of no more use is closed in a daemon thread: nobody waits for
it, and it cannot keep the process.

Only the interpreter's end waits a moment, for it takes away what these threads stand on: one that
was still closing a client then ended the process by SIGSEGV, once in some hundred commands. Where
that moment is too short, a command's process leaves without the interpreter's end.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import warnings
from contextlib import suppress
from typing import Protocol

from confluent_kafka import KafkaException

from trickle.utils.ending import announced

__all__ = ["bury"]

logger = logging.getLogger("trickle.transport.kafka")

# A failed transaction cannot be aborted: the client warns of what is the very reason to close it.
_NO_ABORT = "Producer abort_transaction failed during close"
warnings.filterwarnings("ignore", _NO_ABORT, RuntimeWarning)


_LAST_WAIT_S = 2.0
_closing: list[threading.Thread] = []


@atexit.register
def _wait_at_the_end() -> None:
    """Let what is being closed be closed, for a moment at most."""
    deadline = time.monotonic() + _LAST_WAIT_S
    for thread in _closing:
        thread.join(max(0.0, deadline - time.monotonic()))
    code = announced()
    if code is not None and any(thread.is_alive() for thread in _closing):
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


class _Closable(Protocol):
    def close(self) -> object: ...


def bury(client: _Closable) -> None:
    """Close a client in a thread that nobody waits for."""
    thread = threading.Thread(
        target=_close, args=(client,), name="trickle-kafka-close", daemon=True
    )
    _closing[:] = [one for one in _closing if one.is_alive()]
    _closing.append(thread)
    thread.start()


def _close(client: _Closable) -> None:
    try:
        client.close()
    except (KafkaException, RuntimeWarning, SystemError) as error:
        # Its last transaction failed, which was said where it mattered. Where a filter makes an
        # error of the warning above, the client itself stumbles over it: SystemError.
        logger.debug("while a client was closed: %r", error)
