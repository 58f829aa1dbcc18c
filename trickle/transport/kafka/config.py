"""From a broker URL and options to the settings of librdkafka's clients.

``kafka://[user:password@]host[:port][,host[:port]…]``. With a user in it, the client speaks SASL,
over TLS unless ``security.protocol`` says otherwise.

Every setting that the driver's correctness hangs on is the driver's own: a user who gives one of
those is told so by name. All others of the client's may be given, and win over what is here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote

import msgspec
from confluent_kafka import KafkaError, KafkaException

from trickle.exceptions import ConfigurationError, TransportError
from trickle.transport.contract import ConsumerOptions, ProducerOptions, TransportOptions
from trickle.transport.kafka.errors import error_of, said

__all__ = ["KafkaConfig", "Settings", "configuration_error", "read_config"]

logger = logging.getLogger("trickle.transport.kafka")

Settings: TypeAlias = dict[str, Any]
"""Settings for a client: plain values, and callbacks, which is why they are Any."""

_PORT = 9092
_HOST = re.compile(r"[\w.-]+|\[[0-9A-Fa-f:.]+(%\w+)?\]")  # a name, or an IPv6 address in brackets
_DIGITS = re.compile(r"[0-9]{1,5}")
_PRODUCER_QUEUE_RECORDS = 500_000
_PRODUCER_QUEUE_KIB = 256 * 1024
# Below the broker's socket.request.max.bytes (100 MiB), which cuts the connection instead of
# answering; above any sensible max.message.bytes, so that the topic's own limit decides.
_RECORD_BYTES_MAX = 96 * 1024 * 1024
_PREFETCH_RECORDS = 20_000
# Of a reader, for each partition. The client spends some 350 bytes on each record beside its own,
# which none of its bounds counts: a megabyte of changelog, its default for one fetch, is 20 of
# memory, for each table of each partition that recovers, and all of them recover at once.
_READER_PREFETCH_RECORDS = 4_000
_READER_FETCH_BYTES = 256 << 10

_OWNED = {
    "acks": "every record is acknowledged by all replicas",
    "allow.auto.create.topics": "topics are declared, never made by a typing error",
    "auto.commit.enable": "trickle commits when events have settled",
    "auto.offset.reset": "trickle assigns explicit positions",
    "bootstrap.servers": "it is the broker URL's",
    "delivery.report.only.error": "trickle reads the reports",
    "delivery.timeout.ms": "it follows broker_timeout and the transaction's timeout",
    "enable.auto.commit": "trickle commits when events have settled",
    "enable.auto.offset.store": "trickle commits when events have settled",
    "enable.gapless.guarantee": "trickle chooses how a producer fails",
    "enable.idempotence": "a retry may not store a record twice",
    "enable.partition.eof": "trickle reads the ends of partitions",
    "group.id": "it is the app's id",
    "group.instance.id": "trickle sets it for static membership",
    "group.protocol": "trickle chooses it",
    "group.remote.assignor": "only range keeps partitions of one number together",
    "isolation.level": "trickle reads committed records, where it says so",
    "max.in.flight": "idempotence bounds it",
    "max.in.flight.requests.per.connection": "idempotence bounds it",
    "max.poll.interval.ms": "it follows the rebalance timeout",
    "message.timeout.ms": "it follows broker_timeout and the transaction's timeout",
    "metadata.broker.list": "it is the broker URL's",
    "partition.assignment.strategy": "only range keeps partitions of one number together",
    "partitioner": "it is murmur2_random everywhere, or the topic's partitioner=",
    "request.required.acks": "every record is acknowledged by all replicas",
    "retries": "idempotence sets it",
    "message.send.max.retries": "idempotence sets it",
    "session.timeout.ms": "it is session_timeout=",
    "transaction.timeout.ms": "trickle sets it",
    "transactional.id": "trickle makes it from the app, the host and the data directory",
}
_OWNED_WITHOUT_NAME = ("_cb", "logger", "on_delivery", "on_commit")

_SHARED: Settings = {
    "log.connection.close": False,  # idle connections end by themselves all the time
    # The first connection that is really used is made after half of this: 50 ms by default, for
    # each of the clients that a start makes one after the other.
    "reconnect.backoff.ms": 20,
    "reconnect.backoff.max.ms": 1_000,  # a broker that was restarted is found within a second
    "socket.keepalive.enable": True,  # half-open connections
    "topic.metadata.propagation.max.ms": 5_000,  # how long a missing topic may yet appear
    "topic.metadata.refresh.interval.ms": 60_000,
}


class KafkaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One broker and how its clients are made.

    Attributes:
        url: without secrets.
        secrets: what may not be seen in any log line or error.
        client: what the user gave for the client library.
        request_timeout: seconds that a call may wait for the broker.
    """

    url: str
    servers: str
    secrets: tuple[str, ...]
    client: Mapping[str, str | int | float | bool]
    request_timeout: float

    def admin(self) -> Settings:
        """Return the settings of an AdminClient."""
        return self._settings({})

    def consumer(self, options: ConsumerOptions) -> Settings:
        """Return the settings of a group's member."""
        session_ms = _ms(options.session_timeout)
        poll_ms = max(_ms(options.rebalance_timeout), session_ms)
        settings: Settings = {
            **self._reading(options.group, options.buffer_bytes),
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "group.protocol": options.protocol,
            "max.poll.interval.ms": poll_ms,
        }
        if options.protocol == "classic":
            settings["partition.assignment.strategy"] = "range"
            settings["session.timeout.ms"] = session_ms
            # A member learns of a rebalance by its heartbeat, so it is more frequent than needed.
            settings["heartbeat.interval.ms"] = max(50, min(3_000, session_ms // 10))
        elif options.protocol == "consumer":
            settings["group.remote.assignor"] = "range"  # the rest is the broker's in KIP-848
        else:
            raise ConfigurationError(
                f"the group protocol must be 'classic' or 'consumer', not {options.protocol!r}"
            )
        if options.instance_id is not None:
            settings["group.instance.id"] = options.instance_id
        return self._settings(settings)

    def reader(self, *, committed_only: bool, buffer_bytes: int) -> Settings:
        """Return the settings of a consumer outside any group."""
        return self._settings(
            {
                # The client demands a group id even where nothing is ever committed.
                **self._reading("trickle-reader", buffer_bytes),
                "queued.min.messages": _READER_PREFETCH_RECORDS,
                "fetch.message.max.bytes": _READER_FETCH_BYTES,  # a larger batch comes all the same
                "isolation.level": "read_committed" if committed_only else "read_uncommitted",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
            }
        )

    def producer(self, options: ProducerOptions) -> Settings:
        """Return the settings of a producer, transactional where it has an id."""
        timeout_ms = _ms(self.request_timeout)
        settings: Settings = {
            "acks": "all",
            "batch.size": 1_000_000,
            "enable.idempotence": True,
            "linger.ms": 1,
            "message.max.bytes": _RECORD_BYTES_MAX,
            "partitioner": "murmur2_random",  # Java's, so that other clients agree
            "queue.buffering.max.kbytes": _PRODUCER_QUEUE_KIB,
            "queue.buffering.max.messages": _PRODUCER_QUEUE_RECORDS,
        }
        if options.transactional_id is not None:
            settings["linger.ms"] = 5  # nobody waits for single records; a commit does not linger
            settings["transactional.id"] = options.transactional_id
            # It asks a group's coordinator. Where no broker is up, "rebootstrap", the default, lets
            # go of all that are known, but not of the one that is remembered as the coordinator:
            # what is asked of it hangs though it is back (2.16). (Without it a client whose brokers
            # are all missing in an answer has none for good; this one is made anew then.)
            settings["metadata.recovery.strategy"] = "none"
            settings["transaction.timeout.ms"] = _ms(options.transaction_timeout)
            timeout_ms = min(timeout_ms, _ms(options.transaction_timeout))
        settings["message.timeout.ms"] = max(1_000, timeout_ms)
        return self._settings(settings)

    def linger_ms(self, options: ProducerOptions) -> float:
        """Return how long a producer, which the client has made so, waits for more records."""
        settings = self.producer(options)
        return max(float(settings.get(name, 0)) for name in ("linger.ms", "queue.buffering.max.ms"))

    def _reading(self, group: str, buffer_bytes: int) -> Settings:
        return {
            "group.id": group,
            "allow.auto.create.topics": False,
            "check.crcs": True,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "fetch.queue.backoff.ms": 5,  # 1,000 by default, which starves a fast consumer
            "queued.max.messages.kbytes": max(1_024, buffer_bytes // 2 // 1_024),
            "queued.min.messages": _PREFETCH_RECORDS,
        }

    def _settings(self, own: Settings) -> Settings:
        return {"bootstrap.servers": self.servers, **_SHARED, **own, **self.client}

    def redact(self, text: str) -> str:
        """Return the text without secrets."""
        for secret in self.secrets:
            text = text.replace(secret, "****")
        return text


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1_000))


def read_config(url: str, options: TransportOptions) -> KafkaConfig:
    """Read the broker URL and the client options.

    Raises:
        ConfigurationError: either cannot be used; the sentence names which and why.
    """
    if options.inline:
        raise ConfigurationError(
            "kafka:// needs threads of its own: virtual time (inline) works with memory:// only"
        )
    for name in options.client:
        _check_owned(name)
    rest = url.removeprefix("kafka://").rstrip("/")
    credentials, at, hosts = rest.rpartition("@")
    user, colon, password = credentials.partition(":")
    servers = ",".join(_server(part, url, credentials) for part in hosts.split(","))
    client: dict[str, str | int | float | bool] = dict(options.client)
    shown = servers
    if at:
        if not user or not colon or not password:
            raise ConfigurationError(
                "broker= has a user part that is not user:password; write "
                "kafka://user:password@host:port, or kafka://host:port"
            )
        client.setdefault("security.protocol", "SASL_SSL")
        client.setdefault("sasl.mechanism", "PLAIN")
        client["sasl.username"] = unquote(user)
        client["sasl.password"] = unquote(password)
        shown = f"{user}:****@{servers}"
    _warn_plaintext(client)
    secrets = {
        str(value)
        for name, value in client.items()
        if name.endswith(("password", "secret", ".pem", "sasl.oauthbearer.config"))
    }
    if password:
        secrets.add(password)
    return KafkaConfig(
        url=f"kafka://{shown}",
        servers=servers,
        secrets=tuple(sorted((s for s in secrets if s), key=len, reverse=True)),
        client=client,
        request_timeout=options.request_timeout,
    )


def _check_owned(name: str) -> None:
    reason = _OWNED.get(name)
    if reason is None and name.endswith(_OWNED_WITHOUT_NAME):
        reason = "trickle has callbacks of its own"
    if reason is not None:
        raise ConfigurationError(
            f"the client option {name!r} may not be set: {reason}; remove it from the options"
        )


def _server(part: str, url: str, credentials: str) -> str:
    shown = url.replace(f"{credentials}@", "****@") if credentials else url
    host, colon, port = part.strip().rpartition(":")
    if not colon or part.endswith("]"):  # no port; an IPv6 address ends with its bracket
        host, port = part.strip(), str(_PORT)
    if not _HOST.fullmatch(host) or not _DIGITS.fullmatch(port) or not 0 < int(port) <= 0xFFFF:
        raise ConfigurationError(
            f"broker={shown!r}: {part!r} is no address; write kafka://host:port, "
            "or several addresses with commas between them"
        )
    return f"{host}:{port}"


def _warn_plaintext(client: Mapping[str, str | int | float | bool]) -> None:
    protocol = str(client.get("security.protocol", "plaintext")).lower()
    sasl = any(name in client for name in ("sasl.username", "sasl.password"))
    if protocol == "sasl_plaintext" or (sasl and protocol == "plaintext"):
        logger.warning(
            "the broker's password and all records travel without encryption: "
            "set the client option security.protocol to SASL_SSL"
        )


def configuration_error(raised: KafkaException, config: KafkaConfig) -> Exception:
    """Return what a client's constructor failed by: most likely one of the user's options."""
    error = error_of(raised)
    text = config.redact(said(error))
    if error.code() == KafkaError._INVALID_ARG:  # pyright: ignore[reportPrivateUsage]
        return ConfigurationError(f"the Kafka client refuses an option: {text}")
    return TransportError(f"the Kafka client could not be made: {text}")
