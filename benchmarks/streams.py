"""Trickle's side: the same work as an agent, with the settings that a user gets by default."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice

import trio

import trickle
from benchmarks.data import PARTITIONS, TOPIC, Flight, make_flights
from benchmarks.measure import Stopwatch, tune_gc
from trickle.types import Guarantee

__all__ = ["main"]


class Committed(trickle.BaseSensor):
    """Counts the events of all commits that took effect."""

    def __init__(self) -> None:
        self.events = 0

    def committed(self, seconds: float, events: int, partitions: int) -> None:
        del seconds, partitions
        self.events += events


async def watched(
    app: trickle.App, seen: list[int], done: Callable[[], bool], check: Callable[[], int]
) -> None:
    """Run the app from its first record until all is done, report, and check the result."""
    watch = Stopwatch()

    async def begin() -> None:
        while not seen[0]:
            await trio.sleep(0.001)
        watch.start()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin)
        async with app.run():
            while not done():
                await trio.sleep(0.002)
            watch.report(seen[0])
            if check() != seen[0]:
                raise RuntimeError(f"{check():,} of {seen[0]:,} records are in the result")


async def stateless(app: trickle.App, committed: Committed, records: int) -> None:
    """Decode every record into a Struct."""
    del committed
    flights = app.topic(TOPIC, key=bytes, value=Flight, partitions=PARTITIONS)
    seen, distance = [0], [0]

    @app.agent(flights)
    async def read(stream: trickle.Stream[Flight]) -> None:
        async for flight in stream:
            distance[0] += flight.distance
            seen[0] += 1

    del read
    await watched(app, seen, lambda: seen[0] >= records, lambda: seen[0])


async def count(app: trickle.App, committed: Committed, records: int) -> None:
    """Count per key in a table; done when the last count is committed."""
    flights = app.topic(TOPIC, key=str, value=Flight, partitions=PARTITIONS)
    counts = app.table("counts", key=str, value=int, default=int)
    seen = [0]

    @app.agent(flights)
    async def tally(stream: trickle.Stream[Flight]) -> None:
        async for flight in stream:
            counts[flight.tail] += 1
            seen[0] += 1

    del tally
    await watched(app, seen, lambda: committed.events >= records, lambda: sum(counts.values()))


async def send(app: trickle.App, committed: Committed, records: int) -> None:
    """Send records from outside any event; done when all are delivered."""
    del committed
    flights = app.topic(TOPIC, key=bytes, value=bytes, partitions=PARTITIONS)
    pairs: list[tuple[bytes | None, bytes]] = list(make_flights(records))
    watch = Stopwatch()

    def chunks() -> Iterator[list[tuple[bytes | None, bytes]]]:
        rest = iter(pairs)
        while chunk := list(islice(rest, 5_000)):
            yield chunk

    async with app.run():
        watch.start()
        for chunk in chunks():
            await flights.send_all(chunk)
        watch.report(records)


WORKLOADS: dict[str, Callable[[trickle.App, Committed, int], Awaitable[None]]] = {
    "stateless": stateless,
    "count": count,
    "send": send,
}


def main() -> None:
    """Run one workload and print its result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=sorted(WORKLOADS))
    parser.add_argument("--broker", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--guarantee", default="exactly_once")
    options = parser.parse_args()
    guarantee: Guarantee = (
        "exactly_once" if options.guarantee == "exactly_once" else "at_least_once"
    )
    committed = Committed()
    app = trickle.App(
        options.group,
        sensors=[committed],
        broker=options.broker,
        data_dir=options.data_dir,
        processing_guarantee=guarantee,
        web=False,
    )
    tune_gc()
    trio.run(WORKLOADS[options.workload], app, committed, options.records)


if __name__ == "__main__":
    main()
