"""Who takes part in which workload, and by which command.

=========== =====================================================================================
stateless   decode every record into a typed value; at-least-once, a commit every 2 s
pipe        decode each record and send it on; at-least-once, a commit every 2 s
pipe-eo     the same, exactly-once, a transaction every 100 ms
count       count per key, 10,000 keys, with changelog; exactly-once, a transaction every 100 ms
fresh       the same, where each record has a key of its own
recovery    restore a table of 1.3 million keys from its changelog; the bare client only reads it
latency     from a producer's clock through one agent to a reader, at 1,000 a second; at-least-once
latency-eo  the same, exactly-once; the reader sees committed records only
startup     from the start of the process to the first record handled, of a topic that is filled
embedded    the embedded log: sending from outside events, and an agent that reads, no Kafka
=========== =====================================================================================

The bare client stands first in each: the others are compared with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.data import Kind
from benchmarks.environments import java_classes, python_of

__all__ = ["WORKLOADS", "Contestant", "Place", "Workload"]

Guarantee = Literal["at_least_once", "exactly_once"]


class Place(msgspec.Struct, frozen=True):
    """Where a run works.

    Attributes:
        bootstrap: the broker, empty for workloads without Kafka.
        group: unique to the run, but for recovery, where the changelog's name holds it.
        topic: what it reads.
        out: where it sends, or its changelog.
        directory: its own, for data.
        shared: the directory of all runs of this repetition.
    """

    bootstrap: str
    group: str
    topic: str
    out: str
    records: int
    directory: Path
    shared: Path


Command = Callable[[Place], list[str]]


class Contestant(msgspec.Struct, frozen=True, kw_only=True):
    """Something that does a workload.

    Attributes:
        name: one word, for the command line and the table.
        command: from the place of a run to the process that does it and prints one JSON line. A
            peer with an environment of its own has its own interpreter in it.
        share: of the records: the slow ones read a shorter topic.
        changelog: its name, from the group's and the topic's.
        value: from a changelog's value to the number in it.
        prepare: writes the changelog that is to be recovered; without it the benchmark does so.
        exactly_once: whether it is where its workload is.
    """

    name: str
    command: Command
    share: float = 1.0
    changelog: Callable[[str, str], str] = "{0}-counts-changelog".format
    value: Callable[[bytes], int] = int
    prepare: Command | None = None
    exactly_once: bool = True


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What the contestants do, and what is taken from it.

    Attributes:
        how: how it is run: to the end of a topic, beside a paced producer, or to its first record.
        check: what tells whether the result is right.
        kind: what the topic holds; None where it is empty.
        exactly_once: whether what goes out must be in transactions.
        baseline: whether the others are compared with the first contestant.
    """

    title: str
    contestants: tuple[Contestant, ...]
    how: Literal["throughput", "latency", "startup"] = "throughput"
    check: Literal["counts", "outputs"] | None = None
    kind: Kind | None = "flights"
    exactly_once: bool = False
    kafka: bool = True
    baseline: bool = True
    recovery: bool = False


def bare(workload: str, guarantee: Guarantee = "at_least_once") -> Command:
    """Give the command of the bare client."""
    return lambda place: [
        *(sys.executable, "-m", "benchmarks.bare", workload, "--guarantee", guarantee),
        *("--bootstrap", place.bootstrap, "--group", place.group),
        *("--topic", place.out if workload == "recovery" else place.topic),
        *("--out", place.out, "--records", str(place.records)),
    ]


def trickle(
    workload: str,
    guarantee: Guarantee = "exactly_once",
    *,
    interval: float | None = None,
    client: str = "{}",
) -> Command:
    """Give the command of trickle on Kafka."""
    more = ["--client", client]
    if interval is not None:
        more += ["--commit-interval", str(interval)]
    return lambda place: _trickle(workload, f"kafka://{place.bootstrap}", guarantee, place, more)


def worker(place: Place) -> list[str]:
    """Give the command of ``trickle worker``, with its web server and its log."""
    return [
        *("env", f"BENCH_GROUP={place.group}", f"BENCH_TOPIC={place.topic}"),
        *(f"TRICKLE_BROKER=kafka://{place.bootstrap}", f"TRICKLE_DATA_DIR={place.directory}"),
        *(sys.executable, "-m", "trickle", "worker", "benchmarks.worker_app:app"),
    ]


def embedded(workload: str) -> Command:
    """Give the command of trickle on the embedded log, which is one for each repetition."""
    return lambda place: _trickle(
        workload, f"lmdb://{place.shared / 'log'}", "exactly_once", place, []
    )


def _trickle(
    workload: str, broker: str, guarantee: Guarantee, place: Place, more: list[str]
) -> list[str]:
    return [
        *(sys.executable, "-m", "benchmarks.streams", workload, "--guarantee", guarantee),
        *("--broker", broker, "--group", place.group),
        *("--topic", place.topic, "--out", place.out, "--records", str(place.records)),
        *("--data-dir", str(place.directory)),
        *more,
    ]


def peer(name: str, workload: str, guarantee: Guarantee, interval: float) -> Command:
    """Give the command of a peer, with the seconds between its commits."""

    def command(place: Place) -> list[str]:
        if name == "kafka-streams":
            program = ["java", "-cp", java_classes(), *JVM, "Bench"]
        else:
            program = [python_of(name), "-m", f"benchmarks.peers.{name}"]
        return [
            *(*program, workload, "--guarantee", guarantee, "--commit-interval", str(interval)),
            *("--bootstrap", place.bootstrap, "--group", place.group),
            *("--topic", place.topic, "--out", place.out, "--records", str(place.records)),
            *("--data-dir", str(place.directory)),
        ]

    return command


JVM = ("-XX:+UseSerialGC", "-Xmx1g")
SLOWLY = 2.0  # seconds between commits, as the bare client has them where it is at-least-once
NO_LINGER = '{"linger.ms": 0}'


def quix(
    workload: str, guarantee: Guarantee, interval: float = SLOWLY, *, name: str = "quix"
) -> Contestant:
    """Give Quix Streams."""
    return Contestant(
        name=name,
        command=peer("quix", workload, guarantee, interval),
        share=0.25,
        changelog="changelog__{0}--{1}--default".format,
        exactly_once=guarantee == "exactly_once",
        prepare=peer("quix", "count", "at_least_once", SLOWLY),
    )


def faust(workload: str) -> Contestant:
    """Give Faust, at-least-once."""
    return Contestant(
        name="faust",
        command=peer("faust", workload, "at_least_once", SLOWLY),
        exactly_once=False,
        share=0.025,
        changelog="{0}-counts-changelog".format,
        prepare=peer("faust", "count", "at_least_once", SLOWLY),
    )


def bytewax(workload: str) -> Contestant:
    """Give bytewax."""
    return Contestant(
        name="bytewax", command=peer("bytewax", workload, "at_least_once", SLOWLY), share=0.25
    )


def kafka_streams(
    workload: str, guarantee: Guarantee, interval: float = SLOWLY, *, name: str = "kafka-streams"
) -> Contestant:
    """Give Kafka Streams."""
    return Contestant(
        name=name,
        command=peer("kafka-streams", workload, guarantee, interval),
        share=0.5,
        changelog="{0}-counts-changelog".format,
        value=_long,
        exactly_once=guarantee == "exactly_once",
        prepare=peer("kafka-streams", "count", "at_least_once", SLOWLY),
    )


def _long(data: bytes) -> int:
    return int.from_bytes(data, "big")


WORKLOADS: dict[str, Workload] = {
    "stateless": Workload(
        title="stateless, typed, at-least-once: thousand records a second",
        contestants=(
            Contestant(name="bare", command=bare("stateless")),
            Contestant(
                name="trickle", command=trickle("stateless", "at_least_once", interval=SLOWLY)
            ),
            quix("stateless", "at_least_once"),
            faust("stateless"),
            bytewax("stateless"),
            kafka_streams("stateless", "at_least_once"),
        ),
    ),
    "pipe": Workload(
        title="pipe, one output each, at-least-once: thousand records a second",
        check="outputs",
        contestants=(
            Contestant(name="bare", command=bare("pipe")),
            Contestant(name="trickle", command=trickle("pipe", "at_least_once", interval=SLOWLY)),
            quix("pipe", "at_least_once"),
            faust("pipe"),
            bytewax("pipe"),
            kafka_streams("pipe", "at_least_once"),
        ),
    ),
    "pipe-eo": Workload(
        title="pipe, exactly-once, 100 ms: thousand records a second",
        check="outputs",
        exactly_once=True,
        contestants=(
            Contestant(name="bare", command=bare("pipe", "exactly_once")),
            Contestant(name="trickle", command=trickle("pipe")),
            quix("pipe", "exactly_once", 0.1),
            kafka_streams("pipe", "exactly_once", 0.1),
        ),
    ),
    "count": Workload(
        title="count per key, changelog, exactly-once, 100 ms: thousand records a second",
        check="counts",
        exactly_once=True,
        contestants=(
            Contestant(name="bare", command=bare("count")),
            Contestant(name="trickle", command=trickle("count")),
            quix("count", "exactly_once", 0.1),
            quix("count", "at_least_once", 5.0, name="quix-defaults"),
            faust("count"),
            kafka_streams("count", "exactly_once", 0.1),
            kafka_streams("count", "at_least_once", 5.0, name="kafka-streams-defaults"),
        ),
    ),
    "fresh": Workload(
        title="a new key each event, exactly-once, 100 ms: thousand records a second",
        check="counts",
        kind="fresh",
        exactly_once=True,
        contestants=(
            Contestant(name="bare", command=bare("count")),
            Contestant(name="trickle", command=trickle("count")),
            quix("count", "exactly_once", 0.1),
            faust("count"),
            kafka_streams("count", "exactly_once", 0.1),
        ),
    ),
    "recovery": Workload(
        title="recovery of a table: thousand records a second",
        kind=None,
        recovery=True,
        contestants=(
            Contestant(name="bare", command=bare("recovery")),
            Contestant(name="trickle", command=trickle("recovery")),
            quix("recovery", "at_least_once"),
            faust("recovery"),
            kafka_streams("recovery", "at_least_once"),
        ),
    ),
    "latency": Workload(
        title="latency at 1,000 a second, at-least-once: ms",
        how="latency",
        kind=None,
        contestants=(
            Contestant(name="bare", command=bare("latency")),
            Contestant(
                name="trickle", command=trickle("latency", "at_least_once", client=NO_LINGER)
            ),
            quix("latency", "at_least_once"),
            faust("latency"),
            bytewax("latency"),
            kafka_streams("latency", "at_least_once"),
        ),
    ),
    "latency-eo": Workload(
        title="latency at 1,000 a second, exactly-once, read committed: ms",
        how="latency",
        kind=None,
        contestants=(
            Contestant(name="bare", command=bare("latency", "exactly_once")),
            Contestant(name="trickle", command=trickle("latency", client=NO_LINGER)),
            quix("latency", "exactly_once", 0.1),
            kafka_streams("latency", "exactly_once", 0.1),
        ),
    ),
    "startup": Workload(
        title="start of the process to the first record: seconds",
        how="startup",
        contestants=(
            Contestant(name="bare", command=bare("startup")),
            Contestant(name="trickle", command=trickle("startup")),
            Contestant(name="trickle-worker", command=worker),
            quix("startup", "at_least_once"),
            faust("startup"),
            bytewax("startup"),
            kafka_streams("startup", "at_least_once"),
        ),
    ),
    "embedded": Workload(
        title="the embedded log: thousand records a second",
        kafka=False,
        baseline=False,
        contestants=(
            Contestant(name="sent", command=embedded("send")),
            Contestant(name="read", command=embedded("stateless")),
            Contestant(name="counted", command=embedded("count")),
        ),
    ),
}
