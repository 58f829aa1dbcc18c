"""Trickle's side: the same work as an agent, with the settings that a user gets by default.

Only the guarantee is set, and the commit interval where the bare client has two seconds as well.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import cast

import trio

import trickle
from benchmarks.data import PARTITIONS, Flight, make_flights
from benchmarks.measure import Stopwatch, now, say, tune_gc
from trickle.types import Guarantee

__all__ = ["main"]


class Options(argparse.Namespace):
    """What a run is told."""

    workload: str
    broker: str
    group: str
    topic: str
    out: str
    records: int
    data_dir: str
    guarantee: Guarantee
    commit_interval: float | None
    client: str
    setting: list[str]


class Progress(trickle.BaseSensor):
    """Counts the events of all commits that took effect, and times the recovery of shards."""

    def __init__(self) -> None:
        self.committed_events = 0
        self.committed_at = now()
        self.recovered_records = 0
        self.recovery_began = float("inf")
        self.recovery_ended = 0.0

    def committed(self, seconds: float, events: int, partitions: int) -> None:
        del seconds, partitions
        self.committed_events += events
        self.committed_at = now()

    def recovered(self, table: str, partition: int, records: int, seconds: float) -> None:
        del table, partition
        ended = time.perf_counter()
        self.recovered_records += records
        self.recovery_began = min(self.recovery_began, ended - seconds)
        self.recovery_ended = ended


@asynccontextmanager
async def watched(app: trickle.App, seen: list[int]) -> AsyncGenerator[Stopwatch]:
    """Run the app, with a watch that starts at its first record."""
    watch = Stopwatch()

    async def begin() -> None:
        while not seen[0]:
            await trio.sleep(0.001)
        watch.start()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin)
        async with app.run():
            yield watch


async def until(done: Callable[[], bool]) -> None:
    """Wait until something is so."""
    while not done():
        await trio.sleep(0.002)


async def stateless(app: trickle.App, progress: Progress, options: Options) -> None:
    """Decode every record into a Struct."""
    del progress
    flights = app.topic(options.topic, key=bytes, value=Flight, partitions=PARTITIONS)
    records = options.records
    seen, distance = [0], [0]

    @app.agent(flights)
    async def read(stream: trickle.Stream[Flight]) -> None:
        async for flight in stream:
            distance[0] += flight.distance
            seen[0] += 1

    del read
    async with watched(app, seen) as watch:
        await until(lambda: seen[0] >= records)
        watch.report(seen[0])


async def startup(app: trickle.App, progress: Progress, options: Options) -> None:
    """Say when the first record is handled."""
    del progress
    flights = app.topic(options.topic, key=bytes, value=Flight, partitions=PARTITIONS)
    first = trio.Event()

    @app.agent(flights)
    async def read(stream: trickle.Stream[Flight]) -> None:
        async for _ in stream:
            if not first.is_set():
                say({"first": True})
                first.set()

    del read
    async with app.run():
        await first.wait()


def define_pipe(app: trickle.App, options: Options) -> list[int]:
    """Define an agent that sends each flight on; return what counts them."""
    flights = app.topic(options.topic, key=bytes, value=Flight, partitions=PARTITIONS)
    out = app.topic(options.out, key=str, value=Flight, partitions=PARTITIONS)
    seen = [0]

    @app.agent(flights)
    async def forward(stream: trickle.Stream[Flight]) -> None:
        async for flight in stream:
            out.send_nowait(flight, key=flight.tail)
            seen[0] += 1

    del forward
    return seen


async def pipe(app: trickle.App, progress: Progress, options: Options) -> None:
    """Send each flight on; done with the commit that follows the last one, as the Run is left."""
    seen = define_pipe(app, options)
    records = options.records
    async with watched(app, seen) as watch:
        await until(lambda: seen[0] >= records)
    if progress.committed_events < records:
        raise RuntimeError(f"{progress.committed_events:,} of {records:,} records are committed")
    watch.report(seen[0], ended=progress.committed_at)


async def latency(app: trickle.App, progress: Progress, options: Options) -> None:
    """Send each flight on until a signal asks for the end."""
    del progress
    define_pipe(app, options)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with app.run():
            async for _ in signals:
                break


async def count(app: trickle.App, progress: Progress, options: Options) -> None:
    """Count per key in a table; done when the last count is committed."""
    flights = app.topic(options.topic, key=str, value=Flight, partitions=PARTITIONS)
    counts = app.table("counts", key=str, value=int, default=int)
    records = options.records
    seen = [0]

    @app.agent(flights)
    async def tally(stream: trickle.Stream[Flight]) -> None:
        async for flight in stream:
            counts[flight.tail] += 1
            seen[0] += 1

    del tally
    async with watched(app, seen) as watch:
        await until(lambda: progress.committed_events >= records)
        watch.report(seen[0])
        if (total := sum(counts.values())) != records:
            raise RuntimeError(f"{total:,} of {records:,} records are in the table")


async def recovery(app: trickle.App, progress: Progress, options: Options) -> None:
    """Restore a table whose changelog is full into an empty data directory."""
    flights = app.topic(options.topic, key=str, value=Flight, partitions=PARTITIONS)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent(flights)
    async def tally(stream: trickle.Stream[Flight]) -> None:
        async for flight in stream:
            counts[flight.tail] += 1

    del tally
    watch = Stopwatch()
    watch.start()
    async with app.run():
        seconds = progress.recovery_ended - progress.recovery_began
        watch.report(progress.recovered_records, seconds=seconds)
        if len(counts) != options.records:
            raise RuntimeError(f"{len(counts):,} of {options.records:,} keys are in the table")


async def send(app: trickle.App, progress: Progress, options: Options) -> None:
    """Send records from outside any event; done when all are delivered."""
    del progress
    flights = app.topic(options.topic, key=bytes, value=bytes, partitions=PARTITIONS)
    pairs: list[tuple[bytes | None, bytes]] = list(make_flights(options.records))
    watch = Stopwatch()

    def chunks() -> Iterator[list[tuple[bytes | None, bytes]]]:
        rest = iter(pairs)
        while chunk := list(islice(rest, 5_000)):
            yield chunk

    async with app.run():
        watch.start()
        for chunk in chunks():
            await flights.send_all(chunk)
        watch.report(options.records)


WORKLOADS: dict[str, Callable[[trickle.App, Progress, Options], Awaitable[None]]] = {
    "count": count,
    "latency": latency,
    "pipe": pipe,
    "recovery": recovery,
    "send": send,
    "startup": startup,
    "stateless": stateless,
}


def main() -> None:
    """Run one workload and print its result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=sorted(WORKLOADS))
    parser.add_argument("--broker", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--out", default="")
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--guarantee", default="exactly_once")
    parser.add_argument("--commit-interval", type=float)
    parser.add_argument("--client", default="{}", help="options of librdkafka, as JSON")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="any other, as JSON"
    )
    options = parser.parse_args(namespace=Options())
    settings: trickle.SettingArguments = {
        "broker": options.broker,
        "data_dir": options.data_dir,
        "processing_guarantee": options.guarantee,
        "client": json.loads(options.client),
        "web": False,
    }
    if options.commit_interval is not None:
        settings["commit_interval"] = options.commit_interval
    for setting in options.setting:
        name, _, value = setting.partition("=")
        cast("dict[str, object]", settings)[name] = json.loads(value)
    progress = Progress()
    app = trickle.App(options.group, sensors=[progress], **settings)
    tune_gc()
    trio.run(WORKLOADS[options.workload], app, progress, options)


if __name__ == "__main__":
    main()
