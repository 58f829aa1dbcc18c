"""A commit that was acknowledged, and did not come to be: what a store has of it is not kept.

Kafka 4.3.1 does so where it loses the markers of a transaction in a restart: it calls the
transaction complete, and nothing but an abort by the same producer ends it then.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.tables.helpers import Lane
from tests.tables.world import COUNTS_0, TABLES, World, counts
from trickle.stores.contract import Store
from trickle.stores.lmdb import LmdbStore
from trickle.stores.memory import MemoryStore
from trickle.tables import Shard
from trickle.tables.recovery import CHANGELOG_HEADERS
from trickle.transport.contract import ProducerOptions


class Ledger(World):
    """Commits as the committer does them, in transactions that may be lost after all."""

    def __init__(self) -> None:
        super().__init__()
        self.transport.broker.markers = True

    async def commit_in_transaction(self, shard: Shard[Any, Any], *, lost: bool = False) -> None:
        changes = shard.snapshot()
        assert changes is not None
        begin = (await self.transport.admin.watermarks([COUNTS_0]))[COUNTS_0].high
        options = ProducerOptions(transactional_id="worker")
        async with self.transport.producer(options) as producer:
            for key, value in chain.from_iterable(changes.encoded()):
                assert producer.produce(COUNTS_0.topic, 0, key, value, CHANGELOG_HEADERS, None)
            if lost:
                await producer.abort()
            else:
                await producer.commit({}, None)
        shard.committed(begin + len(changes))


def write(shard: Shard[Any, Any], **values: int) -> None:
    lane = Lane("agent", 0, {counts: shard})
    lane.within(counts.update, values)
    lane.settle()


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
async def test_what_was_acknowledged_and_lost_is_not_kept(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    lost: bool,
    warm: bool,
    on_disk: bool,
) -> None:
    world = Ledger()
    await world.declare()

    def store() -> Store:
        return LmdbStore(tmp_path) if on_disk else MemoryStore(world.disk)

    async with world.manager(store(), transactional=True) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        write(shard, a=1, b=1)
        await world.commit_in_transaction(shard)
        write(shard, a=2)
        await world.commit_in_transaction(shard, lost=lost)
        await manager.flush()
        if warm:
            manager.release(1, 0)
            shard = (await manager.open(1, 0, TABLES))[counts]
            assert shard.read_committed("a") == 2 - lost
    async with world.manager(store(), transactional=True) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        assert (shard.read_committed("a"), shard.read_committed("b")) == (2 - lost, 1)
    assert ("was acknowledged and did not come to be" in caplog.text) == lost


async def test_a_shard_that_is_proven_is_not_read_anew() -> None:
    """It stays warm: its cache with it."""
    world = Ledger()
    await world.declare()
    async with world.manager(transactional=True) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        write(shard, a=1)
        await world.commit_in_transaction(shard)
        manager.release(1, 0)
        young = shard.young
        again = (await manager.open(1, 0, TABLES))[counts]
        assert again is shard
        assert again.young is young
