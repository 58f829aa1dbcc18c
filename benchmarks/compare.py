"""Run the contestants of each workload in turn, several times, and compare them.

One machine's speed drifts by a quarter within minutes, so figures are only compared within a run:
contestants alternate (A B A B …), each run is a process of its own with a group and a data
directory of its own, and a ratio is taken between neighbours. One broker serves all.

=========== =====================================================================================
stateless   decode every record into a Struct
count       count per key: changelog and offsets in one transaction every 100 ms
embedded    the embedded log: sending from outside events, and an agent that reads, no Kafka
=========== =====================================================================================

The table shows each contestant's lowest, median and highest rate, its ratio to the first one, CPU
time per record and peak memory; all single runs are in the JSON file in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.data import RECORDS, fill_kafka
from tests.kafka_broker import KafkaBroker

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results"
RUN_SECONDS_MAX = 600


class Place(msgspec.Struct, frozen=True):
    """Where a run works.

    Attributes:
        bootstrap: the broker, empty for workloads without Kafka.
        group: unique to the run.
        directory: its own, for data.
        shared: the directory of all runs of this repetition.
    """

    bootstrap: str
    group: str
    directory: Path
    shared: Path
    records: int


class Contestant(msgspec.Struct, frozen=True):
    """Something that does a workload.

    Attributes:
        command: from the place of a run to the process that does it and prints one JSON line. A
            peer with an environment of its own has its own interpreter in it.
        baseline: the others of its workload are compared with it; it stands first.
    """

    name: str
    command: Callable[[Place], list[str]]
    baseline: bool = False


def bare(workload: str) -> Callable[[Place], list[str]]:
    """Give the command of the bare client."""
    return lambda place: [
        *(sys.executable, "-m", "benchmarks.bare", workload),
        *("--bootstrap", place.bootstrap, "--group", place.group),
        *("--records", str(place.records)),
    ]


def streams(workload: str, *, embedded: bool = False, **more: str) -> Callable[[Place], list[str]]:
    """Give the command of trickle."""

    def command(place: Place) -> list[str]:
        # Sender and reader of a repetition share one embedded log.
        broker = f"lmdb://{place.shared / 'log'}" if embedded else f"kafka://{place.bootstrap}"
        return [
            *(sys.executable, "-m", "benchmarks.streams", workload),
            *("--broker", broker, "--group", place.group, "--records", str(place.records)),
            *("--data-dir", str(place.directory)),
            *(part for name, value in more.items() for part in (f"--{name}", value)),
        ]

    return command


WORKLOADS: dict[str, list[Contestant]] = {
    "stateless": [
        Contestant("bare loop", bare("stateless"), baseline=True),
        Contestant("trickle", streams("stateless")),
        Contestant("trickle, at least once", streams("stateless", guarantee="at_least_once")),
    ],
    "count": [
        Contestant("bare, same transactions", bare("count"), baseline=True),
        Contestant("trickle", streams("count")),
    ],
    "embedded": [
        Contestant("sent", streams("send", embedded=True)),
        Contestant("read by an agent", streams("stateless", embedded=True)),
        Contestant("counted in a table", streams("count", embedded=True)),
    ],
}


def run_once(contestant: Contestant, place: Place) -> dict[str, Any]:
    """Run one contestant once and return what it measured."""
    place.directory.mkdir()
    done = subprocess.run(
        contestant.command(place), capture_output=True, text=True, check=False,
        timeout=RUN_SECONDS_MAX, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{contestant.name} failed:\n{done.stdout}\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_workload(
    name: str, bootstrap: str, *, repetitions: int, records: int, console: Console
) -> dict[str, list[dict[str, Any]]]:
    """Let the contestants of a workload alternate."""
    contestants = WORKLOADS[name]
    results: dict[str, list[dict[str, Any]]] = {one.name: [] for one in contestants}
    for repetition in range(repetitions):
        with tempfile.TemporaryDirectory(prefix="trickle-bench-") as shared:
            for number, contestant in enumerate(contestants):
                group = f"bench-{name}-{repetition}-{number}-{os.getpid()}"
                place = Place(bootstrap, group, Path(shared) / group, Path(shared), records)
                result = run_once(contestant, place)
                results[contestant.name].append(result)
                rate = result["per_second"] / 1000
                console.print(f"[dim]{name} {repetition + 1}: {contestant.name}: {rate:,.0f} k/s")
    return results


def show(name: str, results: dict[str, list[dict[str, Any]]], console: Console) -> None:
    """Print the table of one workload."""
    table = Table(title=f"{name}: thousand records a second", title_justify="left")
    table.add_column("contestant")
    for title in ("min", "median", "max", "ratio", "CPU µs", "MB"):
        table.add_column(title, justify="right")
    baseline = WORKLOADS[name][0]
    first = results[baseline.name]
    for contestant, runs in results.items():
        rates = [run["per_second"] / 1000 for run in runs]
        ratios = [
            run["per_second"] / base["per_second"] for run, base in zip(runs, first, strict=True)
        ]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        table.add_row(
            contestant,
            *(f"{rate:,.0f}" for rate in (min(rates), median(rates), max(rates))),
            spread if baseline.baseline and runs is not first else "",
            f"{median(run['cpu_us'] for run in runs):.2f}",
            f"{max(run['peak_mb'] for run in runs):,.0f}",
        )
    console.print(table)


def main() -> None:
    """Run the workloads named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Compare trickle with the bare client.")
    parser.add_argument("workloads", nargs="*", metavar="workload", help=", ".join(WORKLOADS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--records", type=int, default=RECORDS)
    options = parser.parse_args()
    names: list[str] = options.workloads or list(WORKLOADS)
    if unknown := sorted(set(names) - set(WORKLOADS)):
        parser.error(f"no workload {unknown[0]!r}: there are {', '.join(WORKLOADS)}")
    console = Console()
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        bootstrap = ""
        if set(names) - {"embedded"}:
            bootstrap = stack.enter_context(KafkaBroker()).address
            size = fill_kafka(bootstrap, options.records)
            console.print(f"[dim]{options.records:,} records of {size:.0f} bytes")
        for name in names:
            results[name] = run_workload(
                name, bootstrap, repetitions=options.repetitions, records=options.records,
                console=console,
            )  # fmt: skip
            show(name, results[name], console)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    machine = {"python": platform.python_version(), "cpus": os.cpu_count()}
    path.write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    console.print(f"written to benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
