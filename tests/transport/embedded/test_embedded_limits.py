"""Full disks, full maps, a stopped writer, forks (faults 40, 41, 49)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from tests.transport.embedded.support import Program, read_all, stop_between_writes, write
from trickle.exceptions import (
    BrokerUnavailable,
    ConfigurationError,
    ProducerFenced,
    RecordRefused,
    UsageError,
)
from trickle.transport import open_transport
from trickle.transport.contract import ProducerOptions, TopicSpec, TransportOptions
from trickle.transport.embedded.environment import Environment, WriteTxn
from trickle.transport.embedded.gate import Gate
from trickle.transport.embedded.transport import EmbeddedTransport
from trickle.types import TopicPartition

PLACE = TopicPartition("in", 0)


async def test_a_full_disk_refuses_a_commit_whole_and_the_rest_stays_readable(
    log: EmbeddedTransport, url: str
) -> None:
    """A process that may write files of 2 MB only.

    Nothing of the refused commit is there, in that process and in others, and others go on.
    """
    async with Program.run("fill", url, str(2 << 20)) as program:
        refused = await program.until("refused")
        assert "cannot be written" in refused
        assert "nothing of the transaction was kept" in refused
        _, commits, found = (await program.until("kept")).split()
    assert int(commits) > 0
    assert commits == found
    await write(log, "in", (None, b"more"))
    records = (await read_all(log, PLACE))[PLACE]
    assert len(records) == int(commits) + 1


async def test_the_map_grows_and_other_processes_follow(log: EmbeddedTransport, url: str) -> None:
    """A process with a map of 1 MiB writes 6 MB.

    This one, with a larger map, sees it all; then one with a smaller map opens what is larger
    already.
    """
    async with Program.run("grow", url, "6000") as program:
        await program.until("done")
    assert len((await read_all(log, PLACE))[PLACE]) == 6000


async def test_a_map_that_another_process_has_grown_is_adopted(url: str) -> None:
    """This process has the small map, and reads and writes on.

    The other one makes it grow beyond what this one has mapped.
    """
    options = TransportOptions(client={"map_size": 1 << 20})
    async with open_transport(url, options) as transport:
        await transport.admin.declare([TopicSpec(name="in", partitions=2)])
        async with Program.run("grow", url, "3000") as program:
            await program.until("done")
        assert len((await read_all(transport, PLACE))[PLACE]) == 3000
        await write(transport, "in", *[(None, b"y" * 1000)] * 3000)
        assert len((await read_all(transport, PLACE))[PLACE]) == 6000


async def test_a_map_that_grows_while_the_log_is_opened_is_adopted(url: str) -> None:
    """This process has mapped the file and waits for its turn; the other one makes it larger."""
    options = TransportOptions(client={"map_size": 1 << 20})
    async with Program.run("outgrow", url) as program:
        await program.until("inside")
        async with open_transport(url, options) as transport:
            await program.until("done")
            await transport.admin.declare([TopicSpec(name="in")])
            await write(transport, "in", (None, b"value"))
            assert len((await read_all(transport, PLACE))[PLACE]) == 1


def test_a_read_waits_a_moment_for_a_write_before_it_adopts_a_larger_map(directory: Path) -> None:
    """LMDB refuses to change a map while this process writes.

    Another process writes beside its lock, as nothing of trickle's does, so that the moment lasts.
    """
    environment = Environment.open(directory, 5, 1 << 20)
    inside, end = threading.Event(), threading.Event()

    def change(_: WriteTxn) -> None:
        inside.set()
        end.wait(20)
        raise LookupError("nothing is written")

    def write() -> None:
        with pytest.raises(LookupError):
            environment.write(change)

    thread = threading.Thread(target=write)
    thread.start()
    assert inside.wait(20)
    program = (
        "import lmdb, sys\n"
        "with lmdb.open(sys.argv[1], map_size=64 << 20, lock=False) as env:\n"
        "    for n in range(2):\n"
        "        with env.begin(write=True) as txn:\n"
        "            txn.put(b'%d' % n, bytes(8 << 20))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(directory)], check=True, timeout=60)
    try:
        with (
            pytest.raises(BrokerUnavailable, match=r"this one could not follow for 0\.5 s"),
            environment.read(),
        ):
            pass
        timer = threading.Timer(0.1, end.set)
        timer.start()
        with environment.read() as txn:
            assert txn.get(txn.meta, b"nothing") is None
        timer.join()
    finally:
        end.set()
        thread.join()
        environment.close()


@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space are Linux's")
async def test_a_map_that_cannot_grow_is_an_error_and_no_crash(
    log: EmbeddedTransport, url: str
) -> None:
    """A process that may use 96 MB of address space more: a clear error, and it can read on."""
    async with Program.run("cramp", url, str(96 << 20)) as program:
        refused = await program.until("refused")
        assert "bytes of address space to grow into" in refused
        assert "raise its limit (ulimit -v)" in refused
        _, done, high = (await program.until("kept")).split()
        assert done == high
        assert int(done) > 0


async def test_commits_that_wait_together_fail_apart(
    log: EmbeddedTransport, directory: Path
) -> None:
    """Three producers wait for the turn to write, and one of them has been fenced meanwhile.

    All three are in one transaction, which is run again without the fenced one.
    """
    failed: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        options = [ProducerOptions(transactional_id=f"producer-{n}") for n in range(3)]
        producers = [await stack.enter_async_context(log.producer(one)) for one in options]
        await log.admin.fence("producer-1")
        gate = Gate(directory)
        assert gate.enter(lambda: True)

        async def commit(n: int) -> None:
            producers[n].produce("in", 0, None, b"%d" % n, (), None)
            try:
                await producers[n].commit({}, None)
            except ProducerFenced as error:
                failed.append(str(error))

        async with trio.open_nursery() as nursery:
            for n in range(3):
                nursery.start_soon(commit, n)
            await trio.testing.wait_all_tasks_blocked()
            gate.leave()
    sentence = (
        "another producer has taken over transactional_id='producer-1': nothing was committed, "
        "and this one is dead"
    )
    assert failed == [sentence]
    values = {record.value for record in (await read_all(log, PLACE))[PLACE]}
    assert values == {b"0", b"2"}


async def test_a_writer_that_does_not_end_is_named(log: EmbeddedTransport, url: str) -> None:
    """Another process has the turn to write and keeps it.

    The error comes in time and names it; when it is dead, the log goes on.
    """
    options = TransportOptions(request_timeout=0.5)
    async with Program.run("hold", url) as program:
        holder = (await program.until("holding")).split()[1]
        async with open_transport(url, options) as transport:
            with (
                trio.fail_after(5),
                pytest.raises(
                    BrokerUnavailable, match=f"for 0.5 s: process {holder} is inside a write"
                ),
            ):
                await transport.admin.delete(["nothing"])
            async with transport.producer(ProducerOptions()) as producer:
                with trio.fail_after(5), pytest.raises(BrokerUnavailable, match=holder):
                    await producer.send("in", 0, None, b"", (), None)
            await program.kill()
            await write(transport, "in", (None, b"value"))


async def test_a_cancelled_wait_for_the_turn_leaves_nothing(
    log: EmbeddedTransport, url: str
) -> None:
    """The commit of a transaction waits for another process's write, and is cancelled.

    It never happens, and the producer goes on.
    """
    async with log.producer(ProducerOptions(transactional_id="one")) as producer:
        async with Program.run("hold", url) as program:
            await program.until("holding")
            producer.produce("in", 0, None, b"lost", (), None, watch=True)
            with trio.move_on_after(0.2) as scope:
                await producer.commit({}, None)
            assert scope.cancelled_caught
        assert producer.ready
        producer.produce("in", 0, None, b"kept", (), None, watch=True)
        assert await producer.commit({}, None) == {PLACE: 1}
    assert [record.value for record in (await read_all(log, PLACE))[PLACE]] == [b"kept"]


async def test_a_stopped_process_between_writes_stops_nobody(
    log: EmbeddedTransport, url: str
) -> None:
    """A member is stopped by SIGSTOP while it does not write; others write on."""
    async with Program.run("join", url, "group") as program:
        await program.until("assigned")
        with trio.fail_after(20):
            await stop_between_writes(program, log)
            await write(log, "in", (None, b"value"))
        os.kill(program.process.pid, signal.SIGCONT)


async def test_a_fork_is_told(log: EmbeddedTransport, url: str) -> None:
    """The child gets a sentence, the parent goes on."""
    async with Program.run("fork", url) as program:
        sentence = await program.line()
        assert "and this is its fork" in sentence
        assert "open the transport after the fork, or start the process by spawn" in sentence
        assert await program.line() == "['in', 'out']"


async def test_a_log_is_opened_twice_in_one_run(log: EmbeddedTransport, url: str) -> None:
    """Both see the same, and the first may close while the second goes on."""
    async with open_transport(url) as first:
        second = open_transport(url)
        transport = await second.__aenter__()
        await write(first, "in", (None, b"value"))
    assert len((await read_all(transport, PLACE))[PLACE]) == 1
    await second.__aexit__(None, None, None)


async def test_another_trio_run_in_the_process_is_refused(log: EmbeddedTransport, url: str) -> None:
    """LMDB could not keep the two apart."""

    async def main() -> None:
        async with open_transport(url):
            pass

    with pytest.raises(UsageError, match="is open in another Trio run of this process"):
        await trio.to_thread.run_sync(trio.run, main)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TransportOptions(inline=True), "cannot run in virtual time"),
        (TransportOptions(client={"acks": 1}), "knows no client option 'acks'"),
        (TransportOptions(client={"map_size": "1"}), "map_size='1' must be a whole number"),
    ],
)
async def test_wrong_options_are_refused(url: str, options: TransportOptions, message: str) -> None:
    """Each by its name."""
    with pytest.raises(ConfigurationError, match=message):
        async with open_transport(url, options):
            pass


async def test_records_that_can_never_be_stored_are_refused(log: EmbeddedTransport) -> None:
    """At produce, with the setting to change."""
    await log.admin.declare(
        [
            TopicSpec(name="small", config={"max.message.bytes": "1000"}),
            TopicSpec(name="compact", compacting=True),
        ]
    )
    async with log.producer(ProducerOptions(transactional_id="one")) as producer:
        with pytest.raises(RecordRefused, match=r"larger than its max\.message\.bytes=1000"):
            producer.produce("small", 0, None, b"x" * 1000, (), None)
        with pytest.raises(RecordRefused, match="a record without a key cannot be stored"):
            producer.produce("compact", 0, None, b"x", (), None)
        with pytest.raises(RecordRefused, match="'in' has no partition 2: its partitions are 0 to"):
            producer.produce("in", 2, None, b"x", (), None)
        with pytest.raises(RecordRefused, match="topic 'none' does not exist"):
            producer.produce("none", 0, None, b"x", (), None)
        with pytest.raises(RecordRefused, match="does not fit into 64 bits"):
            producer.produce("in", 0, None, b"x", (), 1 << 63)
        with pytest.raises(RecordRefused, match="is no Unicode text"):
            producer.produce("in", 0, None, b"x", (("\ud800", b""),), None)
        assert not await producer.commit({}, None)


async def test_ten_megabytes_and_empty_records_pass(log: EmbeddedTransport) -> None:
    """With their headers and odd timestamps."""
    big = os.urandom(10 << 20)
    async with log.producer(ProducerOptions(transactional_id="one")) as producer:
        producer.produce("in", 0, b"", b"", (), 0)
        producer.produce("in", 0, b"k" * 2000, big, (("h", None), ("h", b"2")), -(1 << 62))
        producer.produce("in", 0, None, None, (), 1 << 62)
        await producer.commit({}, None)
    first, second, third = (await read_all(log, PLACE))[PLACE]
    assert (first.key, first.value, first.headers, first.timestamp_ms) == (b"", b"", (), 0)
    assert (second.key, second.value) == (b"k" * 2000, big)
    assert (second.headers, second.timestamp_ms) == ((("h", None), ("h", b"2")), -(1 << 62))
    assert (third.key, third.value, third.timestamp_ms) == (None, None, 1 << 62)
