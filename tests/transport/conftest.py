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
from trickle.transport.contract import Transport
from trickle.transport.memory import MemoryBroker

DRIVERS = [
    "memory",
    "markers",
    "lmdb",
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
