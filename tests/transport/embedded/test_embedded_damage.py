"""Files that were cut, emptied, flipped, removed, or are not ours (faults 42, 45, 55)."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from pathlib import Path

import lmdb
import msgspec
import pytest
import trio

from tests.transport.embedded.support import read_all, write
from trickle.exceptions import CommitFailed, ConfigurationError, TransportError
from trickle.transport import open_transport
from trickle.transport.contract import TopicSpec
from trickle.transport.embedded.environment import Environment, WriteTxn
from trickle.transport.embedded.format import PARTITION
from trickle.transport.embedded.transport import EmbeddedTransport
from trickle.types import TopicPartition

PLACE = TopicPartition("in", 0)
PAGE = 4096


async def filled(url: str, commits: int = 3, size: int = 50_000) -> list[bytes]:
    """Write commits of one record each, close, and return the values."""
    values = [b"%03d" % n + os.urandom(size) for n in range(commits)]
    async with open_transport(url) as transport:
        await transport.admin.declare([TopicSpec(name="in")])
        for value in values:
            await write(transport, "in", (None, value))
    return values


async def contents(url: str) -> list[bytes | None]:
    """Read all there is."""
    async with open_transport(url) as transport:
        found = await read_all(transport, PLACE)
    return [record.value for record in found[PLACE]]


def damaged(directory: Path, what: str) -> str:
    """Return the whole sentence, as a pattern."""
    return (
        f"^the embedded log in {directory} is damaged: {what}\\. Nothing was changed\\. Restore "
        "the directory from a backup, or move it away and start with an empty log "
        r"\(broker= names it\)$"
    )


async def test_a_torn_tail_keeps_the_last_whole_commit(
    url: str, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file ends before the last commit's pages.

    That commit is gone, with a warning; the log can be written again.
    """
    values = await filled(url)
    data = directory / "data.mdb"
    os.truncate(data, data.stat().st_size - 3 * PAGE)
    with caplog.at_level(logging.WARNING):
        assert await contents(url) == values[:-1]
    assert "had a torn tail" in caplog.text
    assert len([name for name in os.listdir(directory) if name.startswith("torn-")]) == 1
    async with open_transport(url) as transport:
        await write(transport, "in", (None, b"again"))
    caplog.clear()
    assert await contents(url) == [*values[:-1], b"again"]
    assert not caplog.records


async def test_every_length_of_a_torn_tail_is_whole_or_an_error(
    url: str, directory: Path, tmp_path: Path
) -> None:
    """Cut at every second page from the end.

    What can be read is always a prefix of the commits; what cannot is refused, and the file is as
    it was.
    """
    values = await filled(url, commits=4, size=9_000)
    kept = tmp_path / "kept"
    shutil.copytree(directory, kept)
    size = (kept / "data.mdb").stat().st_size
    seen: set[int] = set()
    refused: list[str] = []
    for cut in range(0, size, 2 * PAGE):
        shutil.rmtree(directory)
        shutil.copytree(kept, directory)
        os.truncate(directory / "data.mdb", size - cut)
        before = (directory / "data.mdb").read_bytes()
        try:
            found = await contents(url)
        except TransportError as error:
            refused.append(str(error))
            assert (directory / "data.mdb").read_bytes() == before
        else:
            assert found == values[: len(found)]
            seen.add(len(found))
    assert all("is damaged" in sentence for sentence in refused)
    assert {len(values), len(values) - 1} <= seen


@pytest.mark.parametrize(
    ("size", "what"),
    [(0, "data.mdb is empty"), (PAGE, "data.mdb was cut to 4096 bytes")],
)
async def test_a_log_that_lost_its_beginning_is_not_taken_for_new(
    url: str, directory: Path, size: int, what: str
) -> None:
    """Nothing is created in its place."""
    await filled(url, 1)
    os.truncate(directory / "data.mdb", size)
    with pytest.raises(TransportError, match=damaged(directory, what)):
        await contents(url)
    assert (directory / "data.mdb").stat().st_size == size


@pytest.mark.parametrize("size", [0, 100, PAGE])
async def test_a_log_whose_making_was_cut_short_is_made_again(
    url: str, directory: Path, size: int
) -> None:
    """The disk was full before the second meta page and FORMAT: there was nothing in it yet."""
    await filled(url, 1)
    os.truncate(directory / "data.mdb", size)
    os.unlink(directory / "FORMAT")
    values = await filled(url, 2)
    assert await contents(url) == values


async def test_a_small_file_of_somebody_elses_is_left_alone(url: str, directory: Path) -> None:
    """Only what begins as a log does can be one whose making was cut short."""
    os.mkdir(directory)
    theirs = directory / "data.mdb"
    theirs.write_bytes(b"notes")
    wrong = damaged(directory, "data.mdb does not begin as an LMDB file of this machine does")
    with pytest.raises(TransportError, match=wrong):
        await contents(url)
    assert theirs.read_bytes() == b"notes"


async def test_a_missing_file_is_not_taken_for_new(url: str, directory: Path) -> None:
    """FORMAT says that there was one."""
    await filled(url, 1)
    (directory / "data.mdb").unlink()
    with pytest.raises(TransportError, match=damaged(directory, "data.mdb is missing")):
        await contents(url)


async def test_flipped_bytes_are_seen_wherever_they_are(url: str, directory: Path) -> None:
    """A byte flipped in any page that is in use.

    An error, or what was written (the byte was in a free page, or behind what a page holds); never
    another record, never a crash.
    """
    values = await filled(url, commits=3, size=6_000)
    data = directory / "data.mdb"
    whole = data.read_bytes()
    caught = 0
    for at in range(8, len(whole), 509):
        flipped = bytearray(whole)
        flipped[at] ^= 0xFF
        data.write_bytes(flipped)
        try:
            found = await contents(url)
        except (TransportError, ConfigurationError):
            caught += 1
        else:
            assert found == values[: len(found)]
            assert len(found) == 3
    assert caught >= 10


async def test_records_that_do_not_match_their_checksum_are_not_handed_out(
    url: str, directory: Path
) -> None:
    """A flipped byte in a value itself: LMDB would not notice."""
    values = await filled(url, 1)
    data = directory / "data.mdb"
    whole = bytearray(data.read_bytes())
    whole[whole.index(values[0][:100]) + 1000] ^= 1
    data.write_bytes(whole)
    what = "the records from offset 0 of topic number 1, partition 0 do not match their checksum"
    with pytest.raises(TransportError, match=damaged(directory, what)):
        await contents(url)


async def test_a_directory_that_is_deleted_is_noticed(
    log: EmbeddedTransport, directory: Path
) -> None:
    """By a writer at its next commit, and by a reader that waits."""
    await write(log, "in", (None, b"value"))
    wrong = f"the embedded log in {directory} was deleted or replaced while it was open: "
    async with log.reader({PLACE: 1}) as reader:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with pytest.raises(TransportError, match=wrong):
                        await reader.fetch()

                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                shutil.rmtree(directory)
        with pytest.raises(TransportError, match=wrong):
            await log.admin.delete(["in"])


def test_a_file_that_grows_while_two_threads_look_is_not_taken_for_cut(directory: Path) -> None:
    """One looks before the file grows, and compares with what the other one saw after it."""
    environment = Environment.open(directory, 5)
    data = directory / "data.mdb"
    size = data.stat().st_size
    errors: list[TransportError] = []
    grown = threading.Event()

    def look() -> None:
        try:
            while not grown.is_set():
                environment.check_directory()
        except TransportError as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=look) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for n in range(5000):
            os.truncate(data, size + n * PAGE)
    finally:
        grown.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    environment.close()
    assert errors == []


async def test_another_programs_database_is_refused(url: str, directory: Path) -> None:
    """And left as it was."""
    with lmdb.open(str(directory)) as env, env.begin(write=True) as txn:
        txn.put(b"theirs", b"1")
    with pytest.raises(ConfigurationError, match="it holds another program's LMDB database"):
        await contents(url)


async def test_another_version_is_refused(url: str, directory: Path) -> None:
    """Both versions are named."""
    await filled(url, 1)
    with lmdb.open(str(directory), max_dbs=8) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            marker = msgspec.json.decode(txn.get(b"f", db=meta) or b"{}")
            marker["version"] = 2
            txn.put(b"f", msgspec.json.encode(marker), db=meta)
    with pytest.raises(TransportError, match="has format version 2, this trickle reads version 1"):
        await contents(url)


async def test_a_file_of_another_log_is_refused(url: str, directory: Path, tmp_path: Path) -> None:
    """FORMAT and data.mdb do not belong together."""
    await filled(url, 1)
    other = tmp_path / "other"
    await filled(f"lmdb://{other}", 1)
    shutil.copy(other / "data.mdb", directory / "data.mdb")
    with pytest.raises(TransportError, match=r"data\.mdb is another log's than FORMAT says"):
        await contents(url)


@pytest.mark.parametrize("kind", ["symlink", "file"])
async def test_what_is_no_directory_is_refused(tmp_path: Path, kind: str) -> None:
    """A symbolic link is none, even to one."""
    path = tmp_path / "log"
    if kind == "symlink":
        path.symlink_to(tmp_path)
    else:
        path.write_text("")
    why = "is a symbolic link" if kind == "symlink" else "is not a directory"
    with pytest.raises(ConfigurationError, match=f"cannot be used \\({why}\\)"):
        async with open_transport(f"lmdb://{path}"):
            pass


async def test_a_relative_path_is_refused() -> None:
    """Resolving it is the settings' business."""
    with pytest.raises(ConfigurationError, match="must name an absolute directory"):
        async with open_transport("lmdb://here"):
            pass


async def test_the_directory_is_private(log: EmbeddedTransport, directory: Path) -> None:
    """Nobody else can enter, or read a file."""
    assert os.stat(directory).st_mode & 0o777 == 0o700
    assert os.stat(directory / "data.mdb").st_mode & 0o077 == 0


async def test_a_damaged_head_stops_a_commit_with_a_sentence(
    log: EmbeddedTransport, directory: Path
) -> None:
    """A watermark that does not match its checksum: nothing is written after it."""

    def damage(txn: WriteTxn) -> None:
        key = PARTITION.pack(1, 0)
        data = bytearray(txn.get(txn.heads, key) or b"")
        data[-1] ^= 1
        txn.put(txn.heads, key, bytes(data))

    await log.hub.writer.run(damage, 5)
    what = "a stored value does not match its checksum"
    with pytest.raises(CommitFailed, match="nothing was committed: the embedded log in") as info:
        await write(log, "in", (None, b"value"))
    assert what in str(info.value)
    with pytest.raises(TransportError, match=damaged(directory, what)):
        await log.admin.watermarks([PLACE])
