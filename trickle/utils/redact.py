"""Secrets out of what is shown, by an allow-list: what is not known to be harmless is hidden.

A list of words that look like secrets would miss the next one that a client library invents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

__all__ = ["HIDDEN", "client_secrets", "redact_client", "redact_url", "url_secrets"]

HIDDEN = "****"

_HARMLESS = frozenset(
    {
        "api.version.request", "api.version.request.timeout.ms", "batch.num.messages",
        "batch.size", "broker.address.family", "broker.address.ttl", "check.crcs",
        "client.dns.lookup", "client.id", "client.rack", "compression.codec", "compression.level",
        "compression.type",
        "connections.max.idle.ms", "debug", "enable.ssl.certificate.verification",
        "fetch.error.backoff.ms", "fetch.max.bytes", "fetch.message.max.bytes", "fetch.min.bytes",
        "fetch.queue.backoff.ms", "fetch.wait.max.ms", "heartbeat.interval.ms", "linger.ms",
        "log.connection.close", "log_level", "max.partition.fetch.bytes", "message.copy.max.bytes",
        "message.max.bytes", "metadata.max.age.ms", "metadata.recovery.strategy",
        "queue.buffering.max.kbytes", "queue.buffering.max.messages", "queue.buffering.max.ms",
        "queued.max.messages.kbytes", "queued.min.messages", "receive.message.max.bytes",
        "reconnect.backoff.max.ms", "reconnect.backoff.ms", "request.timeout.ms",
        "retry.backoff.max.ms", "retry.backoff.ms", "sasl.mechanism", "sasl.mechanisms",
        "security.protocol", "socket.connection.setup.timeout.ms", "socket.keepalive.enable",
        "socket.max.fails", "socket.nagle.disable", "socket.receive.buffer.bytes",
        "socket.send.buffer.bytes", "socket.timeout.ms", "ssl.ca.location",
        "ssl.certificate.location", "ssl.cipher.suites", "ssl.curves.list",
        "ssl.endpoint.identification.algorithm", "ssl.sigalgs.list", "statistics.interval.ms",
        "sticky.partitioning.linger.ms", "topic.metadata.propagation.max.ms",
        "topic.metadata.refresh.fast.interval.ms", "topic.metadata.refresh.interval.ms",
        "topic.metadata.refresh.sparse",
    }
)  # fmt: skip

_URL = re.compile(r"((?:[a-zA-Z][a-zA-Z0-9+.-]*://)?)(.*)", re.DOTALL)


def redact_client(options: Mapping[str, object]) -> dict[str, object]:
    """Return the client's options, the values of all but the harmless ones hidden."""
    return {name: value if name in _HARMLESS else HIDDEN for name, value in options.items()}


def client_secrets(options: Mapping[str, object]) -> list[str]:
    """Return the values that :func:`redact_client` hides, for log filters.

    Of numbers passwords alone: any other may be part of what has to be read.
    """
    return [
        str(value)
        for name, value in options.items()
        if name not in _HARMLESS and (isinstance(value, str) or "password" in name) and str(value)
    ]


def _parts(url: str) -> tuple[str, str, str, str]:
    """Return the scheme with its slashes, credentials, the rest up to ``?`` or ``#``, the tail."""
    match = _URL.fullmatch(url)
    scheme, rest = match.groups() if match is not None else ("", url)
    if scheme in {"lmdb://", "memory://"}:  # a path or a name: there is no user, and @ is a letter
        return scheme, "", rest, ""
    # A password may hold any of these characters unquoted, so the last @ ends it.
    credentials, _, hosts = rest.rpartition("@")
    end = re.search(r"[?#]", hosts)
    at = end.start() if end else len(hosts)
    return scheme, credentials, hosts[:at], hosts[at:]


def redact_url(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    scheme, credentials, rest, tail = _parts(url)
    return f"{scheme}{HIDDEN + '@' if credentials else ''}{rest}{'?' + HIDDEN if tail else ''}"


def url_secrets(url: str) -> list[str]:
    """Return the password of a URL as it stands and unquoted, for log filters."""
    password = _parts(url)[1].partition(":")[2]
    return sorted({password, unquote(password)} - {""})
