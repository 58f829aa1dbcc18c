"""What both stores promise: one suite, run against memory and LMDB."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trickle.stores.contract import (
    STORED_KEY_BYTES_MAX,
    Environment,
    Position,
    Store,
    TableWrite,
    coalesced,
    stored_key,
)
from trickle.stores.lmdb import LmdbStore
from trickle.stores.memory import MemoryDisk, MemoryStore

Open = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture(params=["memory", "lmdb"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens a store, again and again on the same disk."""
    disk = MemoryDisk()

    @asynccontextmanager
    async def open_store() -> AsyncGenerator[Store]:
        store: Any = (
            MemoryStore(disk)
            if request.param == "memory"
            else LmdbStore(tmp_path / "app" / "tables", lock_timeout=0.05)
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            yield store
            nursery.cancel_scope.cancel()

    return open_store


def write(table: str, offset: int, *changes: tuple[bytes, bytes | None], **more: Any) -> TableWrite:
    return TableWrite(table=table, position=Position("id", offset), changes=changes, **more)


async def test_what_was_written_is_there_after_reopening(opened: Open) -> None:
    async with opened() as store:
        environment = await store.open(4, 1, ["a", "b"])
        assert environment.tables["a"].position is None
        await environment.write(
            [write("a", 7, (b"k", b"1"), (b"l", b"2")), write("b", 9, (b"k", b""))]
        )
        await environment.close()
    async with opened() as store:
        environment = await store.open(4, 1, ["a", "b"])
        a, b = environment.tables["a"], environment.tables["b"]
        assert (a.position, b.position) == (Position("id", 7), Position("id", 9))
        assert (a.get(b"k"), a.get(b"l"), a.get(b"m")) == (b"1", b"2", None)
        assert b.get(b"k") == b""
        assert (a.count(), b.count()) == (2, 1)
        await environment.close()


async def test_partitions_and_counts_are_apart(opened: Open) -> None:
    async with opened() as store:
        places = [(1, 0), (4, 0), (4, 1)]
        environments = [await store.open(*place, ["t"]) for place in places]
        for number, environment in enumerate(environments):
            await environment.write([write("t", number, (b"k", b"%d" % number))])
        for number, environment in enumerate(environments):
            assert environment.tables["t"].get(b"k") == b"%d" % number
            await environment.close()


async def test_deleting_and_clearing(opened: Open) -> None:
    async with opened() as store:
        environment = await store.open(1, 0, ["t"])
        table = environment.tables["t"]
        await environment.write([write("t", 1, (b"a", b"1"), (b"b", b"2"), (b"c", b"3"))])
        await environment.write([write("t", 2, (b"b", None), (b"x", None))])
        assert [key for key, _ in table.scan(None, 10)] == [b"a", b"c"]
        await environment.write([write("t", 3, (b"z", b"9"), clear=True)])
        assert table.scan(None, 10) == [(b"z", b"9")]
        assert (table.count(), table.position) == (1, Position("id", 3))
        await environment.close()


async def test_keys_of_any_length_in_order(opened: Open) -> None:
    """Fault 44: the empty key, keys at LMDB's limit and far beyond, and some that look alike."""
    long = b"x" * STORED_KEY_BYTES_MAX
    keys = [b"", b"\x00", b"\x00\x00", b"a", b"ab", b"b", b"\xff" * 510, long[:510], long, long * 8]
    keys += [long + b"1", long + b"2", stored_key(long), stored_key(long)[:-1]]
    async with opened() as store:
        environment = await store.open(1, 0, ["t"])
        table = environment.tables["t"]
        await environment.write([write("t", 1, *((key, b"=" + key) for key in keys))])
        assert table.count() == len(keys)
        for key in keys:
            assert table.get(key) == b"=" + key
        in_order = sorted(keys, key=stored_key)
        assert [key for key, _ in table.scan(None, 100)] == in_order
        found: list[bytes] = []
        while chunk := table.scan(found[-1] if found else None, 3):
            found += [key for key, _ in chunk]
        assert found == in_order
        await environment.write([write("t", 2, *((key, None) for key in keys))])
        assert table.count() == 0
        await environment.close()


async def test_a_scan_goes_on_behind_a_key_that_is_gone(opened: Open) -> None:
    async with opened() as store:
        environment = await store.open(1, 0, ["t"])
        await environment.write([write("t", 1, *((b"%d" % n, b"") for n in range(6)))])
        await environment.write([write("t", 2, (b"2", None))])
        table = environment.tables["t"]
        assert [key for key, _ in table.scan(b"2", 2)] == [b"3", b"4"]
        assert list(table.scan(b"5", 2)) == []
        await environment.close()


async def test_a_second_holder_gets_an_empty_one_beside(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault 39: the first goes on; the second is told, and rebuilds."""
    async with opened() as first, opened() as second:
        held = await first.open(1, 0, ["t"])
        await held.write([write("t", 5, (b"k", b"1"))])
        beside = await second.open(1, 0, ["t"])
        assert "rebuilt beside" in caplog.text
        assert beside.tables["t"].position is None
        await beside.write([write("t", 6, (b"k", b"2"))])
        assert held.tables["t"].get(b"k") == b"1"
        await held.close()
        await beside.close()


async def test_a_large_write_comes_whole(opened: Open) -> None:
    async with opened() as store:
        environment: Environment = await store.open(1, 0, ["t"])
        changes = coalesced((b"%07d" % (n % 30_000), b"%d" % n) for n in range(60_000))
        await environment.write(
            [TableWrite(table="t", position=Position("id", 60_000), changes=changes)]
        )
        table = environment.tables["t"]
        assert table.count() == 30_000
        assert table.get(b"0000007") == b"30007"
        await environment.close()


@given(st.lists(st.tuples(st.binary(max_size=3), st.one_of(st.none(), st.binary(max_size=2)))))
def test_coalescing_is_the_fold(changes: list[tuple[bytes, bytes | None]]) -> None:
    pairs = coalesced(changes)
    assert dict(pairs) == dict(changes)
    assert [stored_key(key) for key, _ in pairs] == sorted({stored_key(key) for key, _ in changes})


@given(st.binary(max_size=600), st.binary(max_size=600))
def test_stored_keys_keep_keys_apart_and_short_ones_in_order(a: bytes, b: bytes) -> None:
    assert 1 <= len(stored_key(a)) <= STORED_KEY_BYTES_MAX
    assert (stored_key(a) == stored_key(b)) == (a == b)
    if a[:478] != b[:478]:
        assert (stored_key(a) < stored_key(b)) == (a < b)


async def test_what_is_held_is_not_free(opened: Open) -> None:
    async with opened() as store:
        held = await store.open(4, 1, ["a"])
        assert await store.open_free(4, 1, ["a"]) is None
        assert not held.wanted
        await held.write([write("a", 7, (b"k", b"1"))])
        await held.close()
        free = await store.open_free(4, 1, ["a"])
        assert free is not None
        assert (free.tables["a"].get(b"k"), free.tables["a"].position) == (b"1", Position("id", 7))
        await free.close()
