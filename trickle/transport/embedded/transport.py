"""The embedded log as a :class:`~trickle.transport.contract.Transport`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from trickle.exceptions import ConfigurationError
from trickle.transport.contract import (
    ConsumerOptions,
    ProducerOptions,
    RebalanceListener,
    TransportOptions,
)
from trickle.transport.embedded.admin import LogAdmin, check_identity
from trickle.transport.embedded.consumer import LogConsumer, open_consumer
from trickle.transport.embedded.environment import MAP_BYTES
from trickle.transport.embedded.hub import Hub, open_hub
from trickle.transport.embedded.plain import PlainProducer
from trickle.transport.embedded.producer import TransactionalProducer
from trickle.transport.embedded.reader import LogReader
from trickle.types import TopicPartition
from trickle.utils.names import check_name

__all__ = ["EmbeddedTransport", "open_transport"]

_PREFIX = "lmdb://"

_MAP_BYTES_MIN = 1 << 16


class EmbeddedTransport:
    """One log, as this process sees it."""

    def __init__(self, url: str, hub: Hub, timeout: float) -> None:
        self._url = url
        self._hub = hub
        self._timeout = timeout
        self._admin = LogAdmin(hub, timeout)

    @property
    def url(self) -> str:
        """The broker's URL."""
        return self._url

    @property
    def hub(self) -> Hub:
        """What the process shares for this log."""
        return self._hub

    @property
    def admin(self) -> LogAdmin:
        """Looks at topics and groups, and declares topics."""
        return self._admin

    def consumer(
        self, options: ConsumerOptions, listener: RebalanceListener
    ) -> AbstractAsyncContextManager[LogConsumer]:
        """Join a group."""
        return open_consumer(self._hub, options, listener, self._timeout)

    @asynccontextmanager
    async def producer(
        self, options: ProducerOptions
    ) -> AsyncGenerator[PlainProducer | TransactionalProducer, None]:
        """Open a producer.

        Raises:
            ConfigurationError: the group's name or the transactional id cannot be stored.
        """
        if options.group is not None:
            check_name(options.group, what="a consumer group's name")
        if options.transactional_id is None:
            plain = PlainProducer(self._hub, self._timeout)
            try:
                yield plain
            finally:
                plain.close()
            return
        check_identity(options.transactional_id)
        producer = TransactionalProducer(
            self._hub, options, options.transactional_id, self._timeout
        )
        await producer.open()
        try:
            yield producer
        finally:
            producer.close()

    @asynccontextmanager
    async def reader(
        self, positions: Mapping[TopicPartition, int], *, committed_only: bool = True
    ) -> AsyncGenerator[LogReader, None]:
        """Read partitions; what is not committed is in nobody's file, so all is committed."""
        yield LogReader(self._hub, positions)


@asynccontextmanager
async def open_transport(
    url: str, options: TransportOptions
) -> AsyncGenerator[EmbeddedTransport, None]:
    """Open the log in a directory; it is made where there is none.

    Args:
        url: ``lmdb:///absolute/path``.
        options: of ``client`` it knows ``map_size``, the address space to begin with, in bytes.

    Raises:
        ConfigurationError: the URL, the options or the directory cannot be used.
        BrokerUnavailable: another process is checking the file all the time.
        TransportError: the log is damaged, foreign or of another version.
    """
    path = Path(url.removeprefix(_PREFIX))
    if not url.startswith(_PREFIX) or not path.is_absolute():
        raise ConfigurationError(
            f"broker={url!r} must name an absolute directory: lmdb:///absolute/path"
        )
    if options.inline:
        raise ConfigurationError(
            "the embedded log has a thread of its own, so it cannot run in virtual time: use "
            "broker='memory://name' there"
        )
    map_bytes = options.client.get("map_size", MAP_BYTES)
    unknown = sorted(set(options.client) - {"map_size"})
    if unknown:
        raise ConfigurationError(
            f"the embedded log knows no client option {unknown[0]!r}: only 'map_size', in bytes"
        )
    if type(map_bytes) is not int or map_bytes < _MAP_BYTES_MIN:
        raise ConfigurationError(
            f"client option map_size={map_bytes!r} must be a whole number of bytes, at least "
            f"{_MAP_BYTES_MIN}"
        )
    async with open_hub(path, options.request_timeout, map_bytes) as hub:
        yield EmbeddedTransport(url, hub, options.request_timeout)
