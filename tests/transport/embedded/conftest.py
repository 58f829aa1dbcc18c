"""A log in a directory of the test's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from trickle.transport import open_transport
from trickle.transport.contract import TopicSpec, TransportOptions
from trickle.transport.embedded.transport import EmbeddedTransport


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Name the log's directory."""
    return tmp_path / "log"


@pytest.fixture
def url(directory: Path) -> str:
    """Give the log's URL."""
    return f"lmdb://{directory}"


@pytest.fixture
async def log(url: str) -> AsyncGenerator[EmbeddedTransport, None]:
    """Open the log, with topics ``in`` and ``out`` of two partitions each."""
    async with open_transport(url, TransportOptions(request_timeout=10)) as transport:
        assert isinstance(transport, EmbeddedTransport)
        await transport.admin.declare(
            [TopicSpec(name=name, partitions=2) for name in ("in", "out")]
        )
        yield transport
