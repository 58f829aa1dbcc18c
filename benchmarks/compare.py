"""Run the contestants of each workload in turn, several times, and compare them.

One machine's speed drifts by a quarter within minutes, so figures are only compared within a run:
the bare client runs before each other contestant (A B A C A B A C …), each run is a process of its
own with a group and a data directory of its own, and a ratio is taken between neighbours. One
broker serves all. What the workloads are is told in :mod:`benchmarks.contestants`.

The table shows each contestant's lowest, median and highest figure, its ratio to the bare client,
CPU time per record and peak memory; all single runs are in the JSON file in benchmarks/results/.
A run whose result is wrong is void, whatever its figure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from benchmarks.checks import check_counts, check_outputs
from benchmarks.contestants import WORKLOADS, Contestant, Place, Workload
from benchmarks.data import RECORDS, declare, fill, fill_kafka, topic_of
from benchmarks.latency import measure_latency
from benchmarks.processes import Void, first_record, kept, to_the_end
from tests.kafka_broker import KafkaBroker

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results"
EMPTY = "bench-empty"

Run: TypeAlias = dict[str, Any]

# What is shown of a run: its name in the table, its field, what it is divided by.
FIGURES: dict[str, tuple[tuple[str, str, float], ...]] = {
    "throughput": (("", "per_second", 1000),),
    "latency": ((" p50", "p50_ms", 1), (" p99", "p99_ms", 1)),
    "startup": (("", "seconds", 1),),
}


class Bench:
    """One broker, and what has been made on it so far."""

    def __init__(self, bootstrap: str, records: int, console: Console) -> None:
        self._bootstrap = bootstrap
        self._records = records
        self._console = console
        self._made: set[str] = set()
        self._runs = 0

    def run(
        self, name: str, contestants: list[Contestant], repetitions: int
    ) -> dict[str, list[Run]]:
        """Let the contestants of a workload alternate."""
        workload = WORKLOADS[name]
        results: dict[str, list[Run]] = {one.name: [] for one in contestants}
        for repetition in range(repetitions):
            with tempfile.TemporaryDirectory(prefix="trickle-bench-") as shared:
                before: Run = {}
                for one in _order(workload, contestants):
                    run = self._attempt(name, one, Path(shared))
                    first = one is contestants[0]
                    if first:
                        before = run
                    elif workload.baseline:
                        run["ratios"] = _ratios(workload, run, before)
                    results[one.name].append(run)
                    self._say(f"{name} {repetition + 1}: {one.name}: {_short(workload, run)}")
        return results

    def _attempt(self, name: str, one: Contestant, shared: Path) -> Run:
        workload = WORKLOADS[name]
        self._runs += 1
        place = self._place(name, one, shared)
        place.directory.mkdir()
        try:
            if workload.how == "startup":
                return first_record(one, place)
            if workload.how == "latency":
                with kept(one, place):
                    return measure_latency(self._bootstrap, place.topic, place.out)
            result = to_the_end(one, place)
            if wrong := self._wrong(workload, one, place):
                raise Void(wrong)
        except Void as error:
            self._console.print(f"[red]{name}: {one.name} is void:", markup=True)
            self._console.print(str(error), markup=False, highlight=False)
            return {"void": str(error)}
        return result

    def _wrong(self, workload: Workload, one: Contestant, place: Place) -> str:
        """Say what is wrong with the result, or nothing."""
        if workload.check == "outputs":
            return check_outputs(self._bootstrap, place.out, place.records)
        if workload.check == "counts":
            return check_counts(self._bootstrap, place.out, place.records, one.value)
        return ""

    def _place(self, name: str, one: Contestant, shared: Path) -> Place:
        """Make what a run needs on the broker."""
        workload = WORKLOADS[name]
        records = int(self._records * one.share)
        group = f"bench-{name}-{self._runs}-{os.getpid()}"
        out, topic = f"{group}-out", EMPTY
        if workload.recovery:
            group = f"bench-restore-{records}"
            out = one.changelog(group)
            self._make(out, workload, one, records)
        elif workload.check == "counts":
            out = one.changelog(group)
        elif workload.how == "latency" or workload.check == "outputs":
            declare(self._bootstrap, out)
        if workload.how == "latency":
            topic = f"{group}-in"
            declare(self._bootstrap, topic)
        elif workload.kind is not None:
            topic = topic_of(workload.kind, records)
        if workload.kafka:
            self._make(topic, workload, one, records)
        directory = shared / f"run-{self._runs}"
        return Place(self._bootstrap, group, topic, out, records, directory, shared)

    def _make(self, topic: str, workload: Workload, one: Contestant, records: int) -> None:
        """Declare and fill a topic that all runs share, once."""
        if topic in self._made or workload.how == "latency":
            return
        self._made.add(topic)
        self._say(f"filling {topic}")
        if topic == EMPTY:
            declare(self._bootstrap, topic)
        elif workload.recovery:
            declare(self._bootstrap, topic, **{"cleanup.policy": "compact"})
            fill(self._bootstrap, topic, one.pairs(records), one.headers)
        elif workload.kind is not None:
            fill_kafka(self._bootstrap, workload.kind, records)

    def _say(self, what: str) -> None:
        self._console.print(f"[dim]{what}", highlight=False)


def _order(workload: Workload, contestants: list[Contestant]) -> Iterator[Contestant]:
    """Give the order of one repetition: the baseline before each other one."""
    if not workload.baseline:
        yield from contestants
        return
    first, *others = contestants
    for other in others:
        yield first
        yield other
    if not others:
        yield first


def _figures(workload: Workload) -> tuple[tuple[str, str, float], ...]:
    return FIGURES[workload.how]


def _ratios(workload: Workload, run: Run, before: Run) -> dict[str, float]:
    """Return a run's ratio to its neighbour, the bare client just before it, for each figure."""
    if "void" in run or "void" in before:
        return {}
    return {field: run[field] / before[field] for _, field, _ in _figures(workload)}


def _short(workload: Workload, run: Run) -> str:
    if "void" in run:
        return "void"
    return ", ".join(f"{run[field] / by:,.4g}{what}" for what, field, by in _figures(workload))


def show(name: str, results: dict[str, list[Run]], console: Console) -> None:
    """Print the table of one workload."""
    workload = WORKLOADS[name]
    table = Table(title=workload.title, title_justify="left")
    table.add_column("contestant")
    for title in ("min", "median", "max", "ratio", "CPU µs", "MB"):
        table.add_column(title, justify="right")
    for contestant, runs in results.items():
        good = [run for run in runs if "void" not in run]
        for what, field, by in _figures(workload):
            if not good:
                table.add_row(contestant + what, "void")
                continue
            figures = [run[field] / by for run in good]
            ratios = [run["ratios"][field] for run in good if run.get("ratios")]
            cpu = [run["cpu_us"] for run in good if "cpu_us" in run]
            memory = [run["peak_mb"] for run in good if "peak_mb" in run]
            table.add_row(
                contestant + what,
                *(_number(figure) for figure in (min(figures), median(figures), max(figures))),
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "",
                f"{median(cpu):.2f}" if cpu else "",
                f"{max(memory):,.0f}" if memory else "",
            )
    console.print(table)


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def _chosen(names: list[str], wanted: str | None) -> dict[str, list[Contestant]]:
    """Return who takes part in each workload; the baseline always does."""
    only = set(wanted.split(",")) if wanted else None
    return {
        name: [
            one
            for number, one in enumerate(WORKLOADS[name].contestants)
            if only is None or one.name in only or (WORKLOADS[name].baseline and not number)
        ]
        for name in names
    }


def main() -> None:
    """Run the workloads named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Compare trickle with the bare client and peers.")
    parser.add_argument("workloads", nargs="*", metavar="workload", help=", ".join(WORKLOADS))
    parser.add_argument("--contestants", help="names with commas between; all by default")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--records", type=int, default=RECORDS)
    options = parser.parse_args()
    names: list[str] = options.workloads or list(WORKLOADS)
    if unknown := sorted(set(names) - set(WORKLOADS)):
        parser.error(f"no workload {unknown[0]!r}: there are {', '.join(WORKLOADS)}")
    everybody = {one.name for workload in WORKLOADS.values() for one in workload.contestants}
    if unknown := sorted(set((options.contestants or "bare").split(",")) - everybody):
        parser.error(f"no contestant {unknown[0]!r}: there are {', '.join(sorted(everybody))}")
    console = Console()
    results: dict[str, dict[str, list[Run]]] = {}
    with contextlib.ExitStack() as stack:
        bootstrap = ""
        if any(WORKLOADS[name].kafka for name in names):
            bootstrap = stack.enter_context(KafkaBroker()).address
        bench = Bench(bootstrap, options.records, console)
        for name, contestants in _chosen(names, options.contestants).items():
            results[name] = bench.run(name, contestants, options.repetitions)
            show(name, results[name], console)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"machine": _machine(), "results": results}, indent=1) + "\n")
    console.print(f"written to benchmarks/results/{path.name}")
    runs = [run for workload in results.values() for runs in workload.values() for run in runs]
    sys.exit(any("void" in run for run in runs))


def _machine() -> dict[str, str | int | None]:
    """Say where and with what the figures were taken."""
    return {
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("confluent-kafka", "msgspec", "trio", "lmdb")},
    }


if __name__ == "__main__":
    main()
