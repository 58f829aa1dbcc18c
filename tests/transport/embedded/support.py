"""What the tests of the embedded log share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import trio

from trickle.transport.contract import ProducerOptions, Transport
from trickle.types import Record, TopicPartition

PROGRAMS = Path(__file__).with_name("programs.py")


class Program:
    """A program of ``programs.py`` that runs, and what it says."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._rest = b""

    @classmethod
    @asynccontextmanager
    async def run(cls, *args: str) -> AsyncGenerator[Self, None]:
        """Start a program; it is killed at the end if it still runs."""
        process = await trio.lowlevel.open_process(
            [sys.executable, str(PROGRAMS), *args], stdout=subprocess.PIPE
        )
        try:
            yield cls(process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                assert process.stdout is not None
                await process.stdout.aclose()

    async def line(self) -> str:
        """Wait for the next line; empty at the end."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            data = await self.process.stdout.receive_some()
            if not data:
                return ""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    async def until(self, start: str) -> str:
        """Wait for a line with this start."""
        while not (line := await self.line()).startswith(start):
            assert line, f"the program ended without {start!r}"
        return line

    async def kill(self) -> None:
        """End it by SIGKILL and wait until it is gone."""
        self.process.kill()
        await self.process.wait()


async def write(transport: Transport, topic: str, *records: tuple[bytes | None, bytes]) -> None:
    """Write records to partition 0, as one transaction."""
    async with transport.producer(ProducerOptions(transactional_id="writer")) as producer:
        for key, value in records:
            producer.produce(topic, 0, key, value, (), None)
        await producer.commit({}, None)


async def read_all(
    transport: Transport, *places: TopicPartition
) -> dict[TopicPartition, list[Record]]:
    """Read partitions up to their high watermarks."""
    marks = await transport.admin.watermarks(places)
    found: dict[TopicPartition, list[Record]] = {place: [] for place in places}
    async with transport.reader({place: marks[place].low for place in places}) as reader:
        while any(at < marks[place].high for place, at in reader.positions().items()):
            for batch in await reader.fetch():
                place = TopicPartition(batch.topic, batch.partition)
                found[place] += [batch.record(index) for index in range(len(batch))]
    return found


async def stop_between_writes(program: Program, log: Transport) -> None:
    """Stop a process by SIGSTOP while it does not write.

    It may be in a step of its upkeep, which is a write: then it is let go, and stopped once more.
    """
    while True:
        os.kill(program.process.pid, signal.SIGSTOP)
        with trio.move_on_after(3):
            await write(log, "in", (None, b"value"))
            return
        os.kill(program.process.pid, signal.SIGCONT)
        await write(log, "in", (None, b"value"))  # it has left what it was in
