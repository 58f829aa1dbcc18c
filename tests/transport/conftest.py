"""The drivers that the contract suite runs against, each behind a URL.

``markers`` is the memory driver with a transaction's markers taking offsets, as on Kafka.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.kafka_broker import KafkaBroker
from tests.transport.helpers import unique
from trickle.transport import open_transport
from trickle.transport.contract import TopicSpec, Transport
from trickle.transport.memory import MemoryBroker, MemoryTransport

DRIVERS = [
    "memory",
    "markers",
    "lmdb",
    pytest.param("kafka", marks=pytest.mark.kafka),
]


@pytest.fixture(params=DRIVERS)
def transport_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an empty broker, or on Kafka of one that other tests use as well."""
    driver: str = request.param
    if driver == "kafka":
        broker: KafkaBroker = request.getfixturevalue("kafka_broker")
        return f"kafka://{broker.address}"
    if driver == "lmdb":
        return f"lmdb://{tmp_path}/log"
    name = unique(driver)
    MemoryBroker.named(name).markers = driver == "markers"
    return f"memory://{name}"


@pytest.fixture
async def transport(transport_url: str) -> AsyncGenerator[Transport, None]:
    """Give a broker, opened."""
    async with open_transport(transport_url) as opened:
        yield opened


@pytest.fixture
async def memory() -> AsyncGenerator[MemoryTransport, None]:
    """Give a private broker with a topic of two partitions."""
    transport = MemoryTransport(MemoryBroker(seed=1))
    await transport.admin.declare([TopicSpec(name="topic", partitions=2)])
    yield transport
    for topic in transport.broker.topics().values():
        assert not topic.watchers, "every client says that it reads no more"
    assert not transport.broker.group("group").pending
