"""What becomes of speed and memory as an app grows: in keys, partitions, tables, processes.

Each row is a run of its own: workers that count flights in tables, exactly-once, on one real
broker. They recover their tables first, and begin when all partitions are theirs; a rate is that of
all records from there to the last commit. The slowest and the fastest of some repetitions stand
beside the median, for these machines are noisy.

    python -m benchmarks.growth [keys|partitions|tables|processes …] [--records N] [--repetitions N]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import trio
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from rich.console import Console
from rich.table import Table

import trickle
from benchmarks.compare import RESULTS, machine
from benchmarks.data import Flight, fill, make_flight, restored
from benchmarks.measure import say, tune_gc
from benchmarks.plots import number
from tests.kafka_broker import KafkaBroker
from trickle.tables.recovery import CHANGELOG_HEADERS

__all__ = ["main"]

READY_SECONDS_MAX = 300
END_SECONDS_MAX = 300
TOLD_SECONDS = 0.1


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """What one row is about.

    Attributes:
        keys: different ones, evenly spread; the tables hold all of them before the run begins.
    """

    keys: int = 10_000
    partitions: int = 4
    tables: int = 1
    processes: int = 1

    @property
    def topic(self) -> str:
        return f"growth-{self.keys}-{self.partitions}"


DIMENSIONS: dict[str, list[Size]] = {
    "keys": [Size(keys=keys) for keys in (1_000, 10_000, 100_000, 1_000_000, 10_000_000)],
    "partitions": [Size(partitions=count) for count in (1, 8, 64)],
    "tables": [Size(tables=count) for count in (1, 10, 50)],
    "processes": [Size(partitions=8, processes=count) for count in (1, 2, 4)],
}


# One worker's process


class Committed(trickle.BaseSensor):
    """Counts the events of all commits that took effect."""

    def __init__(self) -> None:
        self.events = 0

    def committed(self, seconds: float, events: int, partitions: int) -> None:
        del seconds, partitions
        self.events += events


async def work(size: Size, broker: str, group: str, directory: str) -> None:
    """Count, from a signal on; tell again and again how much is committed."""
    counter = Committed()
    app = trickle.App(group, broker=broker, data_dir=directory, web=False, sensors=[counter])
    flights = app.topic(size.topic, key=str, value=Flight, partitions=size.partitions)
    tables = [
        app.table(f"counts-{number}", key=str, value=int, default=int)
        for number in range(size.tables)
    ]
    go = trio.Event()
    lanes = [0]

    @app.agent(flights)
    async def count(stream: trickle.Stream[Flight]) -> None:
        lanes[0] += 1
        try:
            await go.wait()
            chosen = 0
            async for flight in stream:
                tables[chosen][flight.tail] += 1
                chosen = (chosen + 1) % len(tables)
        finally:
            lanes[0] -= 1

    del count
    tune_gc()
    with trio.open_signal_receiver(signal.SIGUSR1, signal.SIGTERM) as signals:
        async with app.run(), trio.open_nursery() as nursery:
            nursery.start_soon(_tell, counter, lanes)
            async for which in signals:
                if which == signal.SIGTERM:
                    break
                go.set()
            nursery.cancel_scope.cancel()


async def _tell(counter: Committed, lanes: list[int]) -> None:
    while True:
        say(
            {
                "at": time.time(),
                "events": counter.events,
                "lanes": lanes[0],
                "cpu": time.process_time(),
                "mb": _resident_mb(),
            }
        )
        await trio.sleep(TOLD_SECONDS)


def _resident_mb() -> float:
    """Return the memory of this process's own: the stores' files that it maps are not counted."""
    resident, shared = Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3]
    pages = int(resident) - int(shared)
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


# The run


class Bench:
    """One broker, and what has been made on it so far."""

    def __init__(self, broker: KafkaBroker, records: int) -> None:
        self._broker = broker
        self._records = records
        self._runs = 0
        self._filled: set[str] = set()

    def run(self, size: Size) -> dict[str, float]:
        """Run one row once."""
        self._fill(size)
        self._runs += 1
        group = f"growth-{self._runs}"
        for table in range(size.tables):
            name = f"{group}-counts-{table}-changelog"
            self._declare(name, size.partitions, **{"cleanup.policy": "compact"})
            headers = dict[str, str | bytes | None](CHANGELOG_HEADERS)
            if table == 0 and size.keys > 10_000:
                fill(self._broker.address, name, restored(size.keys), headers)
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="trickle-growth-"))
            workers = [
                stack.enter_context(_worker(size, self._broker.url, group, f"{directory}/{one}"))
                for one in range(size.processes)
            ]
            return self._watch(workers, size)

    def _watch(self, workers: list[_Worker], size: Size) -> dict[str, float]:
        told = [worker.latest() for worker in workers]
        deadline = time.monotonic() + READY_SECONDS_MAX
        while sum(held := [one["lanes"] for one in told]) != size.partitions or not all(held):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{size}: not all partitions are assigned: {told}")
            told = [worker.latest() for worker in workers]
        began, before = time.time(), sum(one["cpu"] for one in told)
        empty = sum(one["mb"] for one in told)
        for worker in workers:
            worker.process.send_signal(signal.SIGUSR1)
        while sum(one["events"] for one in told) < self._records:
            if time.time() > began + END_SECONDS_MAX:
                raise RuntimeError(f"{size}: not all was handled: {told}")
            told = [worker.latest() for worker in workers]
        seconds = max(one["at"] for one in told) - began
        return {
            "per_second": self._records / seconds,
            "cpu_us": (sum(one["cpu"] for one in told) - before) / self._records * 1e6,
            "mb_before": empty / len(told),
            "mb": sum(one["mb"] for one in told) / len(told),
        }

    def _fill(self, size: Size) -> None:
        if size.topic not in self._filled:
            self._filled.add(size.topic)
            self._declare(size.topic, size.partitions)
            fill(self._broker.address, size.topic, _flights(self._records, size.keys))

    def _declare(self, name: str, partitions: int, **config: str) -> None:
        admin: Any = AdminClient({"bootstrap.servers": self._broker.address, "log_level": 0})
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=config)
        admin.create_topics([topic])[name].result(30)


def _flights(records: int, keys: int) -> Iterator[tuple[bytes, bytes]]:
    dice = random.Random(2013)
    encode = msgspec.json.Encoder().encode
    for record in range(records):
        tail = f"N{dice.randrange(keys):07d}"
        yield tail.encode(), encode(make_flight(record, tail, 1))


class _Worker:
    """A worker's process, and the file that it writes its lines to."""

    def __init__(self, process: subprocess.Popen[bytes], lines: Path) -> None:
        self.process = process
        self._lines = lines

    def latest(self) -> dict[str, float]:
        """Wait a moment, and return the last line that the worker has told."""
        while True:
            time.sleep(TOLD_SECONDS / 2)
            whole, _, _ = self._lines.read_bytes().rpartition(b"\n")
            if whole:
                told: dict[str, float] = json.loads(whole.rpartition(b"\n")[2])
                return told
            if self.process.poll() is not None:
                raise RuntimeError(f"a worker has ended with code {self.process.returncode}")


@contextlib.contextmanager
def _worker(size: Size, broker: str, group: str, directory: str) -> Generator[_Worker]:
    lines = Path(f"{directory}.told")
    command = ["--worker", msgspec.json.encode(size).decode(), broker, group, directory]
    with lines.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.growth", *command], stdout=file
        )
    try:
        yield _Worker(process, lines)
    finally:
        process.terminate()
        process.wait(30)


def show(dimension: str, results: list[tuple[Size, list[dict[str, float]]]]) -> Table:
    """Make the table of one dimension."""
    table = Table(title=f"by {dimension}", title_justify="left")
    for title in (dimension, "k records/s", "min to max", "CPU µs", "MB before", "MB after"):
        table.add_column(title, justify="right")
    for size, runs in results:
        rates = [run["per_second"] / 1000 for run in runs]
        table.add_row(
            f"{getattr(size, dimension):,}",
            number(median(rates)),
            f"{number(min(rates))} to {number(max(rates))}",
            *(f"{median(run[field] for run in runs):.2f}" for field in ("cpu_us",)),
            *(f"{median(run[field] for run in runs):,.0f}" for field in ("mb_before", "mb")),
        )
    return table


def main() -> None:
    """Run the dimensions named on the command line, or all."""
    if sys.argv[1:2] == ["--worker"]:
        text, broker, group, directory = sys.argv[2:]
        trio.run(work, msgspec.json.decode(text, type=Size), broker, group, directory)
        return
    parser = argparse.ArgumentParser(description="How trickle grows.")
    parser.add_argument("dimensions", nargs="*", metavar="dimension", help=", ".join(DIMENSIONS))
    parser.add_argument("--records", type=int, default=600_000)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    wanted: list[str] = options.dimensions or list(DIMENSIONS)
    if unknown := sorted(set(wanted) - set(DIMENSIONS)):
        parser.error(f"no dimension {unknown[0]!r}: there are {', '.join(DIMENSIONS)}")
    console = Console()
    results: dict[str, list[tuple[Size, list[dict[str, float]]]]] = {}
    with KafkaBroker() as broker:
        bench = Bench(broker, options.records)
        for dimension in wanted:
            rows = results[dimension] = [(size, []) for size in DIMENSIONS[dimension]]
            for _ in range(options.repetitions):
                for size, runs in rows:
                    runs.append(bench.run(size))
                    rate = runs[-1]["per_second"] / 1000
                    value = getattr(size, dimension)
                    console.print(f"[dim]{dimension} {value:,}: {rate:,.0f}", highlight=False)
            console.print(show(dimension, rows))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"growth-{time.strftime('%Y%m%d-%H%M%S')}.json"
    rows_by = {
        dimension: [[msgspec.to_builtins(size), runs] for size, runs in rows]
        for dimension, rows in results.items()
    }
    path.write_text(json.dumps({"machine": machine(), "results": rows_by}, indent=1) + "\n")
    console.print(f"written to benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
