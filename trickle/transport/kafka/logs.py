"""What librdkafka says, as records of the logger ``trickle.transport.kafka``.

The client repeats itself: each of its clients says of each broker, once a second, that it is away.
Here one thing is said once in a while, and how often it was held back with the next. A line is
known again by its facility and its text without digits (addresses keep their place in it).
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import TYPE_CHECKING

from trickle.transport.kafka.errors import AWAY, said

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

    from trickle.transport.kafka.config import KafkaConfig

__all__ = ["ClientLog"]

logger = logging.getLogger("trickle.transport.kafka")

_QUIET_PERIOD = 60.0  # seconds
_KINDS_MAX = 200
_DIGITS = re.compile(r"\d+")
# What the driver itself reports, as an error where it belongs; and connections, said as "away".
_OWN_BUSINESS = frozenset(
    {"ADDOFFSETS", "ADDPARTS", "ASSIGN", "CONFWARN", "FATAL", "GETPID", "TXNERR", "TXNPARTS"}
)
_CONNECTIONS = frozenset({"FAIL", "ERROR", "REQTMOUT", "CONNECT"})


class ClientLog:
    """A transport's one mouth: all its clients log through it, from their own threads."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def log(self, level: int, _: str, facility: str, client: str, text: str) -> None:
        """Take a line from the client: the signature is that of ``Logger.log`` as it calls it."""
        if facility in _OWN_BUSINESS:
            logger.debug("%s [%s] %s", facility, client, self._config.redact(text))
        elif facility in _CONNECTIONS:
            self._away(text)
        else:
            self._say(level, facility, f"{facility}: {text}")

    def error(self, error: KafkaError) -> None:
        """Take an error that belongs to no call: what the client's ``error_cb`` gets."""
        if error.code() in AWAY:
            self._away(said(error))
        else:
            self._say(logging.ERROR if error.fatal() else logging.WARNING, "", said(error))

    def _away(self, text: str) -> None:
        self._say(
            logging.WARNING,
            "away",
            f"the broker {self._config.url} is away, trying again until it answers: {text}",
            kind="",
        )

    def _say(self, level: int, facility: str, text: str, *, kind: str | None = None) -> None:
        key = (facility, _DIGITS.sub("#", text) if kind is None else kind)
        now = time.monotonic()
        with self._lock:
            last, held_back = self._said.get(key, (-_QUIET_PERIOD, 0))
            if now - last < _QUIET_PERIOD:
                self._said[key] = (last, held_back + 1)
                return
            if len(self._said) >= _KINDS_MAX:
                self._said.clear()
            self._said[key] = (now, 0)
        more = f" ({held_back} more like this were not shown)" if held_back else ""
        logger.log(level, "%s%s", self._config.redact(text), more)
