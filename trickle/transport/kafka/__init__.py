"""``kafka://``: Apache Kafka by confluent-kafka (librdkafka), each client in a thread of its own.

The modules, in the order of a message's way: :mod:`.config` makes the clients' settings,
:mod:`.owner` is the thread of a group's member and :mod:`.consumer` its face in Trio,
:mod:`.batch` what it hands over; :mod:`.producer` and :mod:`.transaction` publish;
:mod:`.reader` reads outside groups, :mod:`.admin` looks at topics; :mod:`.errors` and :mod:`.logs`
turn what the client says into sentences; :mod:`.fork` and :mod:`.closing` keep processes clean.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from trickle.transport.kafka.admin import KafkaAdmin
from trickle.transport.kafka.config import read_config
from trickle.transport.kafka.consumer import open_consumer
from trickle.transport.kafka.logs import ClientLog
from trickle.transport.kafka.producer import open_producer
from trickle.transport.kafka.reader import open_reader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from contextlib import AbstractAsyncContextManager

    from trickle.transport.contract import (
        Admin,
        ConsumerClient,
        ConsumerOptions,
        ProducerClient,
        ProducerOptions,
        Reader,
        RebalanceListener,
        TransportOptions,
    )
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.types import TopicPartition

__all__ = ["KafkaTransport", "open_transport"]


class KafkaTransport:
    """See :class:`trickle.transport.contract.Transport`."""

    def __init__(self, config: KafkaConfig, admin: KafkaAdmin, log: ClientLog) -> None:
        self._config = config
        self._admin = admin
        self._log = log

    @property
    def url(self) -> str:
        """The broker's URL, without secrets."""
        return self._config.url

    @property
    def admin(self) -> Admin:
        """The one admin client of this transport."""
        return self._admin

    def consumer(
        self, options: ConsumerOptions, listener: RebalanceListener
    ) -> AbstractAsyncContextManager[ConsumerClient]:
        """Join a group; leave it at the end."""
        return open_consumer(self._config, options, listener, self._log)

    def producer(self, options: ProducerOptions) -> AbstractAsyncContextManager[ProducerClient]:
        """Open a producer; what was not committed at the end is dropped."""
        return open_producer(self._config, options, self._log)

    def reader(
        self, positions: Mapping[TopicPartition, int], *, committed_only: bool = True
    ) -> AbstractAsyncContextManager[Reader]:
        """Read partitions from positions on; a position below the low watermark starts there."""
        return open_reader(self._config, self._log, positions, committed_only=committed_only)


@asynccontextmanager
async def open_transport(url: str, options: TransportOptions) -> AsyncGenerator[KafkaTransport]:
    """Open a Kafka cluster, once it answers.

    Raises:
        ConfigurationError: the URL or a client option cannot be used.
        BrokerUnavailable: no answer within ``request_timeout``.
    """
    config = read_config(url, options)
    log = ClientLog(config)
    admin = KafkaAdmin(config, log)
    try:
        await admin.check()
        yield KafkaTransport(config, admin, log)
    finally:
        admin.close()
