"""What a Run without partitions reads: the store that is there, under the changelog."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import trickle
from trickle.exceptions import StoreError


async def test_a_store_that_is_replaced_is_not_read_as_an_empty_one(tmp_path: Path) -> None:
    app = trickle.App("app", broker=f"lmdb://{tmp_path}/log", data_dir=tmp_path)
    source = app.topic("source", key=str, value=int, partitions=1)
    names = app.table("names", key=str, value=int, default=int)
    done = trio.Event()

    @app.agent(source)
    async def work(stream: trickle.Stream[int, str]) -> None:
        async for event in stream.events():
            names[event.key] += event.value
            event.after_commit(done.set)

    del work
    with trio.fail_after(20):
        async with app.run():
            await source.send(3, key="k")
            await done.wait()
        async with app.client():
            assert dict(names.items()) == {"k": 3}
            store = tmp_path / "app" / "tables" / "1" / "0"
            store.rename(store.with_name("0.damaged"))
            for read in (lambda: names.get("k"), lambda: len(names), lambda: list(names.items())):
                with pytest.raises(StoreError, match="table 'names': the store of partition 0 was"):
                    read()
        async with app.client():
            assert dict(names.items()) == {"k": 3}
