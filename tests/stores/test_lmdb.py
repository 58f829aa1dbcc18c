"""LMDB's own troubles: full maps, full disks, damaged files, locks, forks."""

from __future__ import annotations

import gc
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from trickle.exceptions import StoreError
from trickle.stores.contract import Position, TableWrite
from trickle.stores.lmdb import LmdbStore
from trickle.stores.reading import StoredPartition
from trickle.utils.files import FileLock


@asynccontextmanager
async def running(store: LmdbStore) -> AsyncGenerator[LmdbStore]:
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield store
        nursery.cancel_scope.cancel()


def records(first: int, count: int, size: int = 100) -> TableWrite:
    pairs = [(b"key%08d" % n, b"%0*d" % (size, n)) for n in range(first, first + count)]
    return TableWrite(table="t", position=Position("id", first + count), changes=pairs)


async def fill(directory: Path, count: int = 2000, *, close: bool = True) -> Path:
    """Make an environment with records in it, and return its directory."""
    async with running(LmdbStore(directory)) as store:
        environment = await store.open(1, 0, ["t"])
        await environment.write([records(0, count)])
        if close:
            await environment.close()
    return directory / "1" / "0"


def fill_and_die(directory: Path) -> Path:
    """Make one in a process that ends by SIGKILL while it is open."""
    program = (
        "import os, sys, trio, pathlib\n"
        "from tests.stores.test_lmdb import LmdbStore, records, running\n"
        "async def main():\n"
        "    async with running(LmdbStore(pathlib.Path(sys.argv[1]))) as store:\n"
        "        environment = await store.open(1, 0, ['t'])\n"
        "        await environment.write([records(0, 2000)])\n"
        "        os.kill(os.getpid(), 9)\n"
        "trio.run(main)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(directory)], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    return directory / "1" / "0"


class Beside:
    """Another process that reads the table: it says a line, is told to go on, says another one."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process

    async def hear(self, line: bytes) -> None:
        """Wait for a line, which may come in parts."""
        assert self._process.stdout is not None
        heard = b""
        while not heard.endswith(b"\n"):
            part = await self._process.stdout.receive_some()
            assert part, heard
            heard += part
        assert heard == line

    async def go_on(self) -> None:
        """Let it say its second line."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(b"\n")


@asynccontextmanager
async def beside(directory: Path, first: str, second: str) -> AsyncGenerator[Beside]:
    """Start a process that prints two expressions of its own ``table``, the second when told."""
    program = (
        "import sys, pathlib\n"
        "from trickle.stores.reading import StoredPartition\n"
        "with StoredPartition(pathlib.Path(sys.argv[1]), 1, 0, 't').open() as table:\n"
        f"    print({first}, flush=True)\n"
        "    sys.stdin.readline()\n"
        f"    print({second}, flush=True)\n"
    )
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", program, str(directory)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        with trio.fail_after(30):
            yield Beside(process)
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


async def test_the_map_grows_by_itself(tmp_path: Path) -> None:
    """Fault 40: a write that does not fit is done again, whole, in a larger map."""
    async with running(LmdbStore(tmp_path / "t", map_bytes=64 << 10)) as store:
        environment = await store.open(1, 0, ["t"])
        for first in range(0, 20_000, 5000):
            await environment.write([records(first, 5000)])
            assert environment.tables["t"].get(b"key%08d" % first) is not None
        assert environment.tables["t"].count() == 20_000
        await environment.close()
    async with running(LmdbStore(tmp_path / "t", map_bytes=64 << 10)) as store:
        environment = await store.open(1, 0, ["t"])
        assert environment.tables["t"].count() == 20_000
        await environment.close()


@pytest.mark.parametrize("map_bytes", [1 << 20, 64 << 20])
async def test_a_reader_that_was_killed_does_not_make_the_file_grow(
    tmp_path: Path, map_bytes: int
) -> None:
    """Fault 43: its place is freed as soon as the file grows, or where the map is full."""
    die = "[table._begin(table.db), sys.modules['os'].kill(sys.modules['os'].getpid(), 9)]"
    async with running(LmdbStore(tmp_path / "t", map_bytes=map_bytes)) as store:
        environment = await store.open(1, 0, ["t"])
        for _ in range(3):
            await environment.write([records(0, 500)])
        async with beside(tmp_path / "t", "'open'", die) as reader:
            await reader.hear(b"open\n")
            await reader.go_on()
        for _ in range(100):
            await environment.write([records(0, 500)])
        assert (tmp_path / "t" / "1" / "0" / "data.mdb").stat().st_size <= 1 << 20
        await environment.close()


async def test_a_full_disk_is_told_and_nothing_is_half_written(tmp_path: Path) -> None:
    """Fault 41: a limit on file sizes stands for the disk's end."""
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        await environment.write([records(0, 100)])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            with pytest.raises(StoreError, match="nothing of this write has happened; free some"):
                await environment.write([records(0, 50_000, size=200)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        table = environment.tables["t"]
        assert (table.count(), table.position) == (100, Position("id", 100))
        assert table.get(b"key%08d" % 7) == b"%0100d" % 7
        await environment.close()
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        assert environment.tables["t"].count() == 100
        await environment.close()


@pytest.mark.skipif(sys.platform != "linux", reason="not every system can give a file its blocks")
async def test_what_is_written_through_a_map_has_its_blocks_on_disk(tmp_path: Path) -> None:
    """Fault 41: the table of readers has no holes, which a full disk would turn into a SIGBUS."""
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        file = (tmp_path / "t" / "1" / "0" / "lock.mdb").stat()
        assert file.st_blocks * 512 >= file.st_size > 0
        await environment.close()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in random.Random(3).sample(range(8192, len(data)), 20):
        data[at] ^= 0xFF
    path.write_bytes(data)


def flip_one_value(path: Path) -> None:
    data = path.read_bytes()
    at = data.index(b"%0100d" % 1234) + 99
    path.write_bytes(data[:at] + b"9" + data[at + 1 :])


def misdirect(path: Path) -> None:
    """Let the nodes of all pages lie elsewhere: LMDB follows them, out of the file at that."""
    data = bytearray(path.read_bytes())
    for page in range(2 * 4096, len(data), 4096):
        data[page + 16 : page + 64] = b"\xfe\xff" * 24
    path.write_bytes(data)


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(3).randbytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [cut, empty, flip, flip_one_value, misdirect, garbage])
@pytest.mark.parametrize("died", [False, True])
async def test_damaged_files_are_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], died: bool
) -> None:
    """Fault 42: whether the process before ended in order or died."""
    directory = tmp_path / "t"
    path = fill_and_die(directory) if died else await fill(directory)
    damage(path / "data.mdb")
    async with running(LmdbStore(directory)) as store:
        environment = await store.open(1, 0, ["t"])
        assert (environment.tables["t"].count(), environment.tables["t"].position) == (0, None)
        assert f"the tables in {path} cannot be trusted" in caplog.text
        await environment.write([records(0, 10)])
        await environment.close()
    assert (path.with_name("0.damaged") / "data.mdb").exists()


async def test_a_process_that_died_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill_and_die(tmp_path / "t")
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        assert environment.tables["t"].count() == 2000
        await environment.close()
    assert "cannot be trusted" not in caplog.text


async def test_a_machine_that_stopped_is_not_trusted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = fill_and_die(tmp_path / "t")
    state = path / "state.json"
    state.write_text(state.read_text().replace('"boot":"', '"boot":"another-'))
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        assert environment.tables["t"].position is None
        assert "the machine stopped while it was open" in caplog.text
        await environment.close()


async def test_a_directory_removed_while_open_is_seen(tmp_path: Path) -> None:
    """Fault 45."""
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        await environment.write([records(0, 10)])
        shutil.rmtree(tmp_path / "t")
        with pytest.raises(StoreError, match="were removed while the worker runs"):
            await environment.write([records(0, 10)])
        await environment.close()


async def test_a_generation_beside_is_used_and_the_older_one_removed(tmp_path: Path) -> None:
    """The first holder is gone at last: the newer generation stays, the older one goes."""
    parent = tmp_path / "t" / "1"
    await fill(tmp_path / "t")
    lock = FileLock(parent / "0.lock")
    assert lock.acquire()
    async with running(LmdbStore(tmp_path / "t", lock_timeout=0.01)) as store:
        environment = await store.open(1, 0, ["t"])
        await environment.write([records(0, 3)])
        await environment.close()
    assert (parent / "0.g1").is_dir()
    lock.release()
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        assert environment.tables["t"].count() == 3
        await environment.close()
    assert not (parent / "0").exists()


async def test_private_and_no_symlinks(tmp_path: Path) -> None:
    path = await fill(tmp_path / "t")
    for place in (path, path.parent, path.parent.parent):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / "data.mdb").stat().st_mode) == 0o600
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    async with running(LmdbStore(tmp_path / "t")) as store:
        with pytest.raises(StoreError, match=r"symbolic link; remove it, or name another data_dir"):
            await store.open(1, 0, ["t"])


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with running(LmdbStore(tmp_path / "file" / "t")) as store:
        with pytest.raises(StoreError, match=f"the tables .* {tmp_path / 'file' / 't'}"):
            await store.open(1, 0, ["t"])


async def test_a_child_process_is_refused(tmp_path: Path) -> None:
    """Fault 49: and the parent's lock is the parent's still, whatever the child does."""
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        await environment.write([records(0, 10)])
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            try:
                environment.tables["t"].get(b"key%08d" % 1)
                os.write(write, b"no error")
            except StoreError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        await trio.to_thread.run_sync(os.waitpid, child, 0)
        os.close(write)
        with os.fdopen(read) as pipe:
            assert "before this process forked" in pipe.read()
        assert not FileLock(tmp_path / "t" / "1" / "0.lock").acquire()
        assert environment.tables["t"].get(b"key%08d" % 1) is not None
        await environment.close()


async def test_reading_beside_a_worker(tmp_path: Path) -> None:
    path = await fill(tmp_path / "t", 10)
    with StoredPartition(tmp_path / "t", 1, 0, "t").open() as table:
        assert table is not None
        assert (table.count(), table.position) == (10, Position("id", 10))
    with StoredPartition(tmp_path / "t", 1, 0, "other").open() as table:
        assert table is None
    with StoredPartition(tmp_path / "t", 1, 5, "t").open() as table:
        assert table is None
    cut(path / "data.mdb")
    with StoredPartition(tmp_path / "t", 1, 0, "t").open() as table:
        assert table is None
    assert (path / "data.mdb").exists()


async def test_reading_beside_a_worker_of_another_process(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from trickle.stores.reading import StoredPartition\n"
        "with StoredPartition(pathlib.Path(sys.argv[1]), 1, 0, 't').open() as table:\n"
        "    print(table.count(), table.position.offset)\n"
    )
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        await environment.write([records(0, 10)])
        done = await trio.run_process(
            [sys.executable, "-c", program, str(tmp_path / "t")], capture_stdout=True
        )
        assert done.stdout == b"10 10\n"
        await environment.write([records(10, 10)])
        await environment.close()


async def test_cancelled_while_it_writes_the_write_is_whole(tmp_path: Path) -> None:
    """Fault 50: the write ends before Cancelled rises, so close cannot overtake it."""
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        with trio.CancelScope() as scope:
            scope.cancel()
            await environment.write([records(0, 1000)])
        assert environment.tables["t"].count() == 1000
        await environment.close()


async def test_who_can_spare_an_environment_learns_that_it_is_wanted(tmp_path: Path) -> None:
    """A holder that closes it when it is asked: the one who waits gets it, nothing is rebuilt."""
    async with (
        running(LmdbStore(tmp_path / "t", lock_timeout=30)) as store,
        running(LmdbStore(tmp_path / "t")) as spare,
    ):
        held = await spare.open_free(1, 0, ["t"])
        assert held is not None
        await held.write([records(0, 10)])

        async def give_back() -> None:
            while not held.wanted:  # noqa: ASYNC110 - as between processes
                await trio.sleep(0.01)
            await held.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_back)
            environment = await store.open(1, 0, ["t"])
        assert environment.tables["t"].count() == 10
        assert [path.name for path in (tmp_path / "t" / "1").iterdir() if path.is_dir()] == ["0"]
        await environment.close()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"offset":2000', b'"offset":3000'),
        (b'"offset":2000', b'"offset":2x00'),
        (b'"topic_id":"id"', b'"topic_id":"ie"'),
    ],
)
async def test_a_position_that_is_not_what_was_written_is_not_believed(
    tmp_path: Path, old: bytes, new: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the changelog below it would never be read again."""
    path = fill_and_die(tmp_path / "t")
    data = (path / "data.mdb").read_bytes()
    assert old in data
    (path / "data.mdb").write_bytes(data.replace(old, new))
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        assert (environment.tables["t"].count(), environment.tables["t"].position) == (0, None)
        await environment.close()
    assert "cannot be trusted" in caplog.text


async def test_what_was_not_written_for_a_day_is_old_until_it_is_written(tmp_path: Path) -> None:
    """Opening it makes the file new, and the table in it no newer; nor does another table."""
    path = await fill(tmp_path / "t")
    position = Position("id", 2000)
    for hours, old in ((22, False), (24, True), (0, True)):
        written = time.time() - hours * 3600
        os.utime(path / "data.mdb", (written, written))
        with StoredPartition(tmp_path / "t", 1, 0, "t").open() as table:
            assert table is not None
            assert table.position == position._replace(old=old)
        async with running(LmdbStore(tmp_path / "t")) as store:
            environment = await store.open(1, 0, ["t", "other"])
            assert environment.tables["t"].position == position._replace(old=old)
            other = TableWrite(table="other", position=Position("id", 1), changes=[(b"k", b"v")])
            await environment.write([other])
            await environment.close()
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        await environment.write([records(2000, 1)])
        await environment.close()
    with StoredPartition(tmp_path / "t", 1, 0, "t").open() as table:
        assert table is not None
        assert table.position == Position("id", 2001)


async def test_reading_beside_a_worker_that_makes_its_map_larger(tmp_path: Path) -> None:
    """By more than the 64 MB that the reader began with."""
    async with running(LmdbStore(tmp_path / "t")) as store:
        environment = await store.open(1, 0, ["t"])
        await environment.write([records(0, 10)])
        rest = "len(table.scan(b'key00000004', 50)), table.count(), len(table.get(b'key00000800'))"
        async with beside(tmp_path / "t", "len(table.scan(None, 5))", rest) as reader:
            await reader.hear(b"5\n")
            for first in range(10, 910, 300):
                await environment.write([records(first, 300, 100_000)])
            await reader.go_on()
            await reader.hear(b"50 910 100000\n")
        await environment.close()


async def test_a_reader_takes_no_worker_s_place(tmp_path: Path) -> None:
    """One that reads for long, through a pager, while a worker starts."""
    path = await fill(tmp_path / "t")
    async with (
        beside(tmp_path / "t", "table.count()", "table.count()") as reader,
        running(LmdbStore(tmp_path / "t")) as store,
    ):
        await reader.hear(b"2000\n")
        environment = await store.open(1, 0, ["t"])
        assert environment.tables["t"].count() == 2000
        await environment.write([records(2000, 1)])
        await reader.go_on()
        await reader.hear(b"2001\n")
        await environment.close()
    assert sorted(p.name for p in path.parent.iterdir() if p.is_dir()) == ["0"]


async def test_what_is_closed_leaves_nothing_for_the_collector(tmp_path: Path) -> None:
    async with running(LmdbStore(tmp_path)) as store:
        environment = await store.open(1, 0, ["t"])
        table = weakref.ref(environment.tables["t"])
        gc.disable()
        try:
            await environment.close()
            del environment
            with trio.fail_after(5):  # the thread lets go of the call a little later
                while table() is not None:  # noqa: ASYNC110 - nobody is told
                    await trio.sleep(0.001)
        finally:
            gc.enable()
