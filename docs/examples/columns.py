"""Work on columns: batches of readings as numpy arrays, each batch one event.

From the top of the checkout, on the embedded log (it needs numpy: the extra ``columns``)::

    python docs/examples/columns.py

Two agents read the same readings of some sensors and keep for each sensor how many there
were, their sum, and the highest: one reading by reading, the other by ``stream.batches()``, which
gives what is there already as a list, without waiting for more. Both settle what they did as one
transaction, an event or a batch, so both tables are exact whatever happens. The second one writes
each sensor once a batch, and leaves the arithmetic to numpy.

Columns pay where there is arithmetic to do on each value. Where an event costs little more than its
table's write, as here, what is saved is the writes: the fewer keys for each batch, the more.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import trio
from rich.console import Console
from rich.table import Table

import trickle

SENSORS = 20
CHUNK = 5_000


class Reading(trickle.Model):
    """One measurement."""

    sensor: int
    celsius: float


class Totals(trickle.Model, frozen=True):
    """What is known of a sensor."""

    readings: int = 0
    sum: float = 0.0
    highest: float = -273.15


app = trickle.App("columns")
readings = app.topic("readings", key=int, value=Reading, partitions=4)
by_reading = app.table("by_reading", key=int, value=Totals, default=Totals)
by_batch = app.table("by_batch", key=int, value=Totals, default=Totals)


@app.agent(readings)
async def rows(stream: trickle.Stream[Reading]) -> None:
    """Take one reading after the other."""
    async for reading in stream:
        before = by_reading[reading.sensor]
        by_reading[reading.sensor] = Totals(
            before.readings + 1,
            before.sum + reading.celsius,
            max(before.highest, reading.celsius),
        )


@app.agent(readings)
async def columns(stream: trickle.Stream[Reading]) -> None:
    """Take what is there as two columns, and write each sensor of a batch once."""
    async for batch in stream.batches():
        count = len(batch)
        sensors = np.fromiter((reading.sensor for reading in batch), np.int64, count)
        celsius = np.fromiter((reading.celsius for reading in batch), np.float64, count)
        found, place, numbers = np.unique(sensors, return_inverse=True, return_counts=True)
        sums = np.bincount(place, weights=celsius)
        highest = np.full(len(found), -np.inf)
        np.maximum.at(highest, place, celsius)
        for sensor, number, total, top in zip(
            found.tolist(), numbers.tolist(), sums.tolist(), highest.tolist(), strict=True
        ):
            before = by_batch[sensor]
            by_batch[sensor] = Totals(
                before.readings + number, before.sum + total, max(before.highest, top)
            )


def make_readings(count: int) -> Iterator[tuple[int, Reading]]:
    """Make readings, always the same ones."""
    dice = random.Random(7)  # noqa: S311 - to be repeatable
    for _ in range(count):
        sensor = dice.randrange(SENSORS)
        yield sensor, Reading(sensor, round(dice.gauss(20, 5), 2))


def counted(table: trickle.Table[int, Totals]) -> int:
    return sum(totals.readings for totals in table.values())


async def run(count: int, console: Console) -> None:
    """Send the readings, wait until both tables have them all, and show what they say."""
    async with app.run():
        began = time.monotonic()
        source = make_readings(count)
        before = counted(by_batch)
        while await readings.send_all(islice(source, CHUNK)):
            pass
        with trio.fail_after(120):
            while min(counted(by_batch), counted(by_reading)) < before + count:  # noqa: ASYNC110
                await trio.sleep(0.02)
        seconds = time.monotonic() - began
        console.print(f"{count:,} readings sent, and counted by both agents, in {seconds:.1f} s")
        show(console)


def show(console: Console) -> None:
    """Print both tables side by side."""
    table = Table(title="The first sensors, by columns and by rows", title_justify="left")
    for title in ("sensor", "readings", "mean", "highest", "readings", "mean", "highest"):
        table.add_column(title, justify="right")
    for sensor in sorted(by_batch)[:5]:
        row = [f"{sensor}"]
        for totals in (by_batch[sensor], by_reading[sensor]):
            mean = totals.sum / totals.readings
            row += [f"{totals.readings:,}", f"{mean:.2f}", f"{totals.highest:.2f}"]
        table.add_row(*row)
    console.print(table)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Readings of sensors, as columns.")
    parser.add_argument("--readings", type=int, default=200_000)
    parser.add_argument("--data-dir", type=Path, help="where tables and the embedded log are kept")
    options = parser.parse_args()
    if options.data_dir is not None:
        os.environ["TRICKLE_DATA_DIR"] = str(options.data_dir.absolute())
    trio.run(run, options.readings, Console())


if __name__ == "__main__":
    main()
