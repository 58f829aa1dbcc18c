"""What does not wait for what: the threads of the store."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio

from tests.stores.test_lmdb import records, running
from trickle.stores import lmdb
from trickle.stores.homes import Verdict, examine
from trickle.stores.lmdb import LmdbStore


async def test_nobody_s_writes_wait_for_an_environment_that_is_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill that takes minutes for large files, and a disk has one to answer a write."""
    begun, written = threading.Event(), threading.Event()

    def late(path: Path) -> Verdict:
        begun.set()
        assert written.wait(20)
        return examine(path)

    async with running(LmdbStore(tmp_path)) as store, trio.open_nursery() as nursery:
        first = await store.open(2, 0, ["t"])
        monkeypatch.setattr(lmdb, "examine", late)
        opening = trio.Event()

        async def open_other() -> None:
            await (await store.open(2, 1, ["t"])).close()
            opening.set()

        nursery.start_soon(open_other)
        assert await trio.to_thread.run_sync(begun.wait, 10)
        with trio.fail_after(10):
            await first.write([records(0, 10)])
        written.set()
        await opening.wait()
        await first.close()
