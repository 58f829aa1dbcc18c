"""Several processes on one log: whole transactions, takeover, wake-up (promise 1, fault 1)."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.transport.embedded.support import Program, read_all, stop_between_writes, write
from trickle.exceptions import CommitFailed, TransportError
from trickle.transport import open_transport
from trickle.transport.contract import CommittedOffset, ConsumerOptions, ProducerOptions, TopicSpec
from trickle.transport.embedded.group import GroupFiles, Slot, slots_wanted
from trickle.transport.embedded.transport import EmbeddedTransport
from trickle.transport.embedded.wake import Wake
from trickle.types import TopicPartition

IN = (TopicPartition("in", 0), TopicPartition("in", 1))
OUT = (TopicPartition("out", 0), TopicPartition("out", 1))


async def test_two_producers_and_a_reader(log: EmbeddedTransport, url: str) -> None:
    """Two processes write transactions of five while this one reads.

    Each transaction is seen whole and in one piece, and each producer's are in order.
    """
    seen: dict[TopicPartition, list[tuple[bytes | None, int]]] = {place: [] for place in IN}
    async with (
        log.reader(dict.fromkeys(IN, 0)) as reader,
        Program.run("produce", url, "a", "1000") as first,
        Program.run("produce", url, "b", "1000") as second,
    ):
        with trio.fail_after(60):
            while sum(map(len, seen.values())) < 2000:
                for batch in await reader.fetch():
                    rows = seen[TopicPartition(batch.topic, batch.partition)]
                    for key, value in zip(batch.keys(), batch.values(), strict=True):
                        rows.append((key, int(value or b"-1")))
                assert all(len(rows) % 5 == 0 for rows in seen.values())
            await first.until("done")
            await second.until("done")
    for partition, place in enumerate(IN):
        rows = seen[place]
        for start in range(0, len(rows), 5):
            who, begin = rows[start]
            assert begin % 5 == 0
            assert rows[start : start + 5] == [(who, begin + i) for i in range(5)]
        for who in (b"a", b"b"):
            mine = [value for key, value in rows if key == who]
            assert mine == [n for n in range(1000) if n // 5 % 2 == partition]


async def test_a_worker_killed_again_and_again_copies_exactly(
    log: EmbeddedTransport, url: str
) -> None:
    """A worker that copies in transactions is killed by SIGKILL at random moments.

    After each death the offsets committed equal the records written, and in the end the copy is
    exact.
    """
    generator = random.Random(7)
    count = 1500
    async with log.producer(ProducerOptions(transactional_id="source")) as producer:
        for n in range(count):
            producer.produce("in", n % 2, None, b"%d" % n, (), None)
        await producer.commit({}, None)

    async def copied() -> int:
        marks = await log.admin.watermarks(OUT)
        offsets = await log.admin.committed("copiers", IN)
        for source, copy in zip(IN, OUT, strict=True):
            committed = offsets[source]
            assert marks[copy].high == (0 if committed is None else committed.offset)
        return sum(mark.high for mark in marks.values())

    done = 0
    with trio.fail_after(100):
        for _ in range(8):
            async with (
                Program.run("work", url) as program,
                log.reader(
                    {place: mark.high for place, mark in (await log.admin.watermarks(OUT)).items()}
                ) as reader,
            ):
                enough = generator.randrange(1, 100)
                while sum(reader.positions().values()) < min(done + enough, count):
                    await reader.fetch()
                await program.kill()
            done = await copied()
        async with Program.run("work", url), log.reader(dict.fromkeys(OUT, 0)) as reader:
            while sum(reader.positions().values()) < count:
                await reader.fetch()
    assert await copied() == count
    found = await read_all(log, *OUT)
    for partition, place in enumerate(OUT):
        assert [record.value for record in found[place]] == [
            b"%d" % n for n in range(partition, count, 2)
        ]


async def test_a_log_that_nobody_closed_is_sound(url: str) -> None:
    """A writer is killed while nobody else has the log open.

    Whoever comes next checks the file whole, finds it sound, and every commit that was told.
    """
    generator = random.Random(3)
    place = IN[0]
    async with open_transport(url) as transport:
        await transport.admin.declare([TopicSpec(name="in", partitions=1, retention_ms=100)])
    before = 0
    for _ in range(6):
        async with Program.run("write_on", url) as program:
            told = 0
            for _ in range(generator.randrange(1, 200)):
                told = int(await program.line())
            await program.kill()
        async with open_transport(url) as transport:
            marks = (await transport.admin.watermarks([place]))[place]
            assert marks.high % 5 == 0
            assert marks.high >= before + told * 5
            # Retention goes on meanwhile, at the other end, also between two reads.
            offsets = [record.offset for record in (await read_all(transport, place))[place]]
            assert offsets == sorted(set(offsets))
            assert offsets[-1:] in ([], [marks.high - 1])
            before = marks.high


async def test_members_share_and_take_over(log: EmbeddedTransport, url: str) -> None:
    """The first member has all.

    A second one gets half of it, of both topics; the first is killed, and the second gets the rest.
    """
    with trio.fail_after(30):
        async with Program.run("join", url, "group") as first:
            assert await first.until("assigned") == "assigned in/0 in/1 out/0 out/1"
            async with Program.run("join", url, "group") as second:
                assert await second.until("assigned") == "assigned in/1 out/1"
                assert await first.until("revoked") == "revoked 4"
                assert await first.until("assigned") == "assigned in/0 out/0"
                await first.kill()
                assert await second.until("revoked") == "revoked 2"
                assert await second.until("assigned") == "assigned in/0 in/1 out/0 out/1"


async def test_a_stopped_member_keeps_its_partitions(log: EmbeddedTransport, url: str) -> None:
    """SIGSTOP: a newcomer gets nothing of what the stopped one has, until it goes on."""
    with trio.fail_after(30):
        async with Program.run("join", url, "group") as first:
            await first.until("assigned")
            await stop_between_writes(first, log)
            async with Program.run("join", url, "group") as second:
                assert await second.until("assigned") == "assigned"
                os.kill(first.process.pid, signal.SIGCONT)
                assert await second.until("assigned") == "assigned in/1 out/1"


async def test_what_a_member_begot_holds_nothing_of_its(log: EmbeddedTransport, url: str) -> None:
    """A forked child has the parent's files open: not its locks."""
    with trio.fail_after(30):
        async with Program.run("beget", url, "group") as first:
            child = int((await first.until("begot")).split()[1])
            try:
                async with Program.run("join", url, "group") as second:
                    assert await second.until("assigned") == "assigned in/1 out/1"
                    await first.kill()
                    assert await second.until("revoked") == "revoked 2"
                    assert await second.until("assigned") == "assigned in/0 in/1 out/0 out/1"
            finally:
                os.kill(child, signal.SIGKILL)


def test_a_member_that_has_left_takes_nothing(tmp_path: Path) -> None:
    """The watch may look for free partitions while the member's files go."""
    files = GroupFiles(tmp_path, "group", ["in"])
    files.join()
    assert files.take([Slot(2, 0), Slot(2, 1)])
    files.leave()
    assert not files.take([Slot(2, 0), Slot(2, 1)])
    other = GroupFiles(tmp_path, "group", ["in"])
    other.join()
    assert other.take([Slot(2, 0)])
    assert other.held == {Slot(2, 0)}
    other.leave()


class Silent:
    """A listener that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, frozenset[TopicPartition]]] = []
        self.send, self.receive = trio.open_memory_channel[str](10)

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        self.told.append(("assigned", partitions))
        self.send.send_nowait("assigned")

    async def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        self.told.append(("revoked", partitions))
        self.send.send_nowait("revoked")

    async def lost(self, partitions: frozenset[TopicPartition]) -> None:
        self.told.append(("lost", partitions))
        self.send.send_nowait("lost")


async def test_deleted_lock_files_are_noticed(log: EmbeddedTransport, directory: Path) -> None:
    """A lock whose file is gone excludes nobody.

    No commit passes any more, and the partitions are lost.
    """
    listener = Silent()
    options = ConsumerOptions(group="group", topics=("in",))
    with trio.fail_after(10):
        async with log.consumer(options, listener) as consumer:
            await listener.receive.receive()
            for lock in (directory / "groups/group/partitions").iterdir():
                lock.unlink()
            with pytest.raises(TransportError, match="lock files"):
                await consumer.commit({IN[0]: CommittedOffset(0)})
            with pytest.raises(TransportError, match=r"lock files .* were deleted"):
                while True:
                    await consumer.fetch()
    assert listener.told == [("assigned", frozenset(IN)), ("lost", frozenset(IN))]


async def test_a_deleted_groups_directory_is_noticed(
    log: EmbeddedTransport, directory: Path
) -> None:
    """All of the group's files go at once, as with the data directory of a running worker."""
    listener = Silent()
    options = ConsumerOptions(group="group", topics=("in",))
    with trio.fail_after(10):
        async with log.consumer(options, listener) as consumer:
            await listener.receive.receive()
            shutil.rmtree(directory / "groups")
            with pytest.raises(TransportError, match=r"lock files .* were deleted"):
                while True:
                    await consumer.fetch()
    assert listener.told == [("assigned", frozenset(IN)), ("lost", frozenset(IN))]


async def test_a_lock_that_cannot_be_taken_is_told_in_a_sentence(
    log: EmbeddedTransport, directory: Path
) -> None:
    """As where the disk has no room for its file; here a directory is in its place."""
    for path in ("groups", "groups/group", "groups/group/partitions"):
        (directory / path).mkdir(mode=0o700, exist_ok=True)
    (directory / f"groups/group/partitions/{len(IN)}-0.lock").mkdir()
    options = ConsumerOptions(group="group", topics=("in",))
    with trio.fail_after(10):
        async with log.consumer(options, Silent()) as consumer:
            with pytest.raises(TransportError, match=r"group 'group': its files under .* Is a dir"):
                await consumer.fetch()


async def test_a_commit_for_a_partition_of_another_member_fails(
    log: EmbeddedTransport, url: str
) -> None:
    """Alone the member commits for both.

    After it has shared, for its own only, and the membership of before is worth nothing.
    """
    listener = Silent()
    options = ConsumerOptions(group="group", topics=("in", "out"))
    with trio.fail_after(20):
        async with log.consumer(options, listener) as consumer:
            assert await listener.receive.receive() == "assigned"
            before = consumer.member
            await consumer.commit(dict.fromkeys(IN, CommittedOffset(0)))
            async with Program.run("join", url, "group") as program:
                await program.until("assigned")
                assert await listener.receive.receive() == "revoked"
                assert await listener.receive.receive() == "assigned"
                await consumer.commit({IN[0]: CommittedOffset(1)})
                with pytest.raises(CommitFailed, match="does not hold partition 1 of topic 'in'"):
                    await consumer.commit({IN[1]: CommittedOffset(1)})
                producing = ProducerOptions(group="group", transactional_id="one")
                async with log.producer(producing) as producer:
                    with pytest.raises(CommitFailed, match="the assignment has changed since"):
                        await producer.commit({IN[0]: CommittedOffset(2)}, before)
    offsets = await log.admin.committed("group", IN)
    assert offsets == {IN[0]: CommittedOffset(1), IN[1]: CommittedOffset(0)}


names = st.sampled_from(["a", "b", "c", "d"])
topics = st.sets(st.sampled_from(["one", "two", "three"]))


@given(
    st.dictionaries(names, topics, min_size=1),
    st.dictionaries(st.sampled_from(["one", "two", "three"]), st.integers(1, 5)),
)
def test_every_slot_goes_to_one_member_that_wants_it(
    wishes: dict[str, set[str]], counts: dict[str, int]
) -> None:
    """No slot twice, none forgotten, none to a member that wants no topic of its count."""
    shares = {me: slots_wanted(wishes, counts, me) for me in wishes}
    wanted = {
        Slot(counts[topic], number)
        for mine in wishes.values()
        for topic in mine
        if topic in counts
        for number in range(counts[topic])
    }
    assert sorted(slot for share in shares.values() for slot in share) == sorted(wanted)
    for me, share in shares.items():
        assert {slot.of for slot in share} <= {
            counts[topic] for topic in wishes[me] if topic in counts
        }


async def test_a_commit_of_another_process_wakes_without_the_poll(tmp_path: Path) -> None:
    """Two wake-ups on one directory stand for two processes.

    Each wakes the other; one that died without a word is forgotten.
    """
    first, second, third = Wake(tmp_path), Wake(tmp_path), Wake(tmp_path)
    for wake in (first, second, third):
        wake.open()
    third._socket.close()  # type: ignore[union-attr] # pyright: ignore[reportPrivateUsage, reportOptionalMemberAccess] - it dies
    with trio.fail_after(10):
        for waiter, waker in ((first, second), (second, first)):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(waiter.wait, waiter.version, 60)
                await trio.testing.wait_all_tasks_blocked()
                waker.notify()
    assert len(list((tmp_path / "wake").iterdir())) == 2
    first.close()
    second.close()
    third._socket = None  # pyright: ignore[reportPrivateUsage]
    assert not list((tmp_path / "wake").iterdir())


@pytest.mark.parametrize("note", ["nul", "no text", "cut", "relative", "long", "pipe", "link"])
async def test_a_note_that_is_none_neither_stops_a_commit_nor_costs_a_file(
    log: EmbeddedTransport, directory: Path, tmp_path: Path, note: str
) -> None:
    """Something else lies beside the notes of the sockets: commits go on, and nothing is deleted.

    What it names is a file of somebody's, and no socket.
    """
    precious = tmp_path / "precious"
    precious.write_text("precious")
    path = directory / "wake" / ("other" if note == "cut" else "precious")
    match note:
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(precious)
        case _:
            texts = {
                "nul": b"\0" * 40,
                "no text": b"\xff\xfe/precious",
                "cut": os.fsencode(precious),
                "relative": b"precious",
                "long": b"/" + b"x/" * 5000 + b"precious",
            }
            path.write_bytes(texts[note])
    with trio.fail_after(10):
        for value in (b"one", b"two"):
            await write(log, "in", (None, value))
        assert len((await read_all(log, IN[0]))[IN[0]]) == 2
        await log.hub.writer.call(lambda: None)  # the thread is there
    assert precious.read_text() == "precious"
    assert path.is_fifo() or path.exists()


async def test_a_note_that_names_a_file_costs_no_file(
    log: EmbeddedTransport, directory: Path, tmp_path: Path
) -> None:
    """It has the file's name, as a note has its socket's: only the note goes."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    note = directory / "wake" / "precious"
    note.write_bytes(os.fsencode(precious))
    await write(log, "in", (None, b"value"))
    await log.hub.writer.call(lambda: None)
    assert precious.read_text() == "precious"


async def test_without_a_socket_the_poll_finds_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A runtime directory whose path is too long for a socket.

    A warning, and the wait ends by itself.
    """
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    wake = Wake(tmp_path)
    wake.open()
    assert "other processes cannot wake this one" in caplog.text
    with trio.fail_after(10):
        await wake.wait(wake.version, 0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wake.wait, wake.version, 60)
            await trio.testing.wait_all_tasks_blocked()
            wake.bump()
    wake.close()


async def test_sends_of_many_tasks_share_their_commits(log: EmbeddedTransport) -> None:
    """A hundred tasks send one record each: every one is told its own place."""
    told: dict[int, int | None] = {}
    async with log.producer(ProducerOptions()) as producer:

        async def send(n: int) -> None:
            told[n] = (await producer.send("in", 0, None, b"%d" % n, (), None)).offset

        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(send, n)
    records = (await read_all(log, IN[0]))[IN[0]]
    assert {int(record.value or b""): record.offset for record in records} == told
    assert len(told) == 100


async def test_a_plain_producer_is_full_until_it_has_written(log: EmbeddedTransport) -> None:
    """Past its bound it takes nothing; after drained() it does; all arrives in order."""
    value = b"x" * (1 << 20)
    taken = 0
    async with log.producer(ProducerOptions()) as producer:
        full = 0
        while taken < 50:
            if producer.produce("in", 0, b"%d" % taken, value, (), None, watch=True):
                taken += 1
            else:
                full += 1
                await producer.drained()
        assert full
        assert await producer.commit({}, None) == {IN[0]: 50}
    records = (await read_all(log, IN[0]))[IN[0]]
    assert [record.key for record in records] == [b"%d" % n for n in range(50)]


async def test_a_topic_created_again_takes_nothing_meant_for_the_old_one(
    log: EmbeddedTransport,
) -> None:
    """What was staged for the deleted topic fails, with its name.

    What comes then is stored; the group's offsets are gone with the old topic, and the old records
    with the upkeep.
    """
    await write(log, "in", (None, b"old"))
    options = ProducerOptions(group="group", transactional_id="one")
    async with log.producer(options) as producer:
        await producer.commit({IN[0]: CommittedOffset(1)}, None)
        producer.produce("in", 0, None, b"lost", (), None)
        before = (await log.admin.topics(["in"]))["in"].topic_id
        await log.admin.delete(["in"])
        await log.admin.declare([TopicSpec(name="in", partitions=2)])
        assert (await log.admin.topics(["in"]))["in"].topic_id != before
        with pytest.raises(CommitFailed, match="topic 'in' was deleted or created again") as info:
            await producer.commit({}, None)
        assert info.value.refused is not None
        assert info.value.refused.topic == "in"
        producer.produce("in", 0, None, b"new", (), None)
        await producer.commit({}, None)
    assert [record.value for record in (await read_all(log, IN[0]))[IN[0]]] == [b"new"]
    assert await log.admin.committed("group", [IN[0]]) == {IN[0]: None}
