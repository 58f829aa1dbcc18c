"""When shards are stored, beside recoveries and closings of others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from tests.tables.test_manager import write
from tests.tables.world import TABLES, World, counts
from trickle.transport.memory.consumer import MemoryReader
from trickle.transport.shared import RecordBatch


async def test_a_long_recovery_keeps_no_other_shard_from_being_stored(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what waits to be stored grows for as long as it takes."""
    world = World(partitions=2)
    await world.declare()
    await world.produce(counts, (b"x", b"1"), partition=1)
    fetch = MemoryReader.fetch

    async def late(self: MemoryReader) -> Sequence[RecordBatch]:
        await trio.sleep(50)
        return await fetch(self)

    async with (
        world.manager(flush_interval=1) as manager,
        trio.open_nursery() as nursery,
    ):
        shard = (await manager.open(2, 0, TABLES))[counts]
        monkeypatch.setattr(MemoryReader, "fetch", late)
        nursery.start_soon(manager.open, 2, 1, TABLES)
        await trio.sleep(0.5)
        for number in range(3):
            write(shard, a=number)
            await world.commit(shard)
            await trio.sleep(2)
            assert not shard.unstored
        assert list(manager.shards_of(counts)) == [shard]  # the other one recovers yet


@pytest.mark.parametrize("checkpoints", range(6))
async def test_what_is_stored_while_it_is_closed_is_no_failure(
    autojump_clock: MockClock, checkpoints: int
) -> None:
    """A revocation cancels an opening that closes what is not retained, as a flush falls due."""
    world = World()
    await world.declare()
    async with world.manager(flush_interval=1000) as manager:
        shard = (await manager.open(1, 0, TABLES))[counts]
        write(shard, a=1)
        await world.commit(shard)
        manager.release(1, 0)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as opening:
                async with trio.open_nursery() as inner:
                    inner.start_soon(manager.retain, ())
                    nursery.start_soon(manager.flush)
                    for _ in range(checkpoints):
                        await trio.lowlevel.checkpoint()
                    opening.cancel()
        assert world.disk.held == {}
