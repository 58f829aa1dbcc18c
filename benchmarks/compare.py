"""Run the contestants of each workload in turn, several times, and compare them.

One machine's speed drifts by a quarter within minutes, so figures are only compared within a run:
the bare client runs before each other contestant (A B A C A B A C …), each run is a process of its
own with a group and a data directory of its own, and a ratio is taken between neighbours. One
broker serves all. What the workloads are is told in :mod:`benchmarks.contestants`.

The table shows each contestant's lowest, median and highest figure, its ratio to the bare client,
CPU time per record with its own ratio (which a busy machine disturbs least) and peak memory; all
single runs are in the JSON file in benchmarks/results/. A run whose result is wrong is void,
whatever its figure.
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
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.checks import check_counts, check_outputs, check_transactions
from benchmarks.contestants import WORKLOADS, Contestant, Place, Workload
from benchmarks.data import RECORDS, declare, fill, fill_kafka, restored, topic_of
from benchmarks.environments import peer_versions
from benchmarks.latency import measure_latency
from benchmarks.plots import draw, number
from benchmarks.processes import Void, first_record, kept, to_the_end
from benchmarks.publish import publish
from tests.kafka_broker import KafkaBroker
from trickle.tables.recovery import CHANGELOG_HEADERS

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results"
EMPTY = "bench-empty"
WIDTH = 120  # of the tables, where nothing tells

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
                    first = one is contestants[0]
                    # The bare client runs often; once a repetition tells that it is right.
                    run = self._attempt(name, one, Path(shared), check=not (first and before))
                    if first:
                        before = run
                    elif workload.baseline:
                        run["ratios"] = _ratios(workload, run, before)
                    results[one.name].append(run)
                    self._say(f"{name} {repetition + 1}: {one.name}: {_short(workload, run)}")
        return results

    def _attempt(self, name: str, one: Contestant, shared: Path, *, check: bool) -> Run:
        workload = WORKLOADS[name]
        self._runs += 1
        try:
            place = self._place(name, one, shared)
            place.directory.mkdir()
            if workload.how == "startup":
                return first_record(one, place)
            if workload.how == "latency":
                with kept(one, place):
                    return measure_latency(self._bootstrap, place.topic, place.out)
            result = to_the_end(one.command(place))
            if check and (wrong := self._wrong(workload, one, place)):
                raise Void(wrong)
        except Void as error:
            self._console.print(f"[red]{name}: {one.name} is void:", markup=True)
            self._console.print(str(error), markup=False, highlight=False)
            return {"void": str(error)}
        return result

    def _wrong(self, workload: Workload, one: Contestant, place: Place) -> str:
        """Say what is wrong with the result, or nothing."""
        bootstrap = self._bootstrap
        wrong = ""
        if workload.check == "outputs":
            wrong = check_outputs(bootstrap, place.out, place.records)
        elif workload.check == "counts":
            wrong = check_counts(bootstrap, place.out, place.records, one.value)
        if not wrong and workload.exactly_once and one.exactly_once:
            wrong = check_transactions(bootstrap, place.out)
        return wrong

    def _place(self, name: str, one: Contestant, shared: Path) -> Place:
        """Make what a run needs on the broker, and say where it works."""
        workload = WORKLOADS[name]
        records = int(self._records * one.share)
        group = f"bench-{name}-{self._runs}-{os.getpid()}"
        out, topic = f"{group}-out", EMPTY
        if workload.how == "latency":
            topic = f"{group}-in"
            declare(self._bootstrap, topic)
        elif workload.kind is not None:
            topic = topic_of(workload.kind, records)
        if workload.how == "latency" or workload.check == "outputs":
            declare(self._bootstrap, out)
        elif workload.check == "counts":
            out = one.changelog(group, topic)
        if workload.recovery:
            group = f"bench-{one.name if one.prepare else 'restore'}"
            topic = topic_of("fresh", records) if one.prepare else EMPTY
            out = one.changelog(group, topic)
        directory = shared / f"run-{self._runs}"
        place = Place(self._bootstrap, group, topic, out, records, directory, shared)
        if workload.kafka and workload.how != "latency":
            self._once(topic, lambda: self._fill(topic, workload, records))
        if workload.recovery:
            self._once(out, lambda: self._changelog(one, place))
        return place

    def _once(self, what: str, make: Callable[[], None]) -> None:
        """Make what all runs share, when it is first needed."""
        if what not in self._made:
            self._say(f"filling {what}")
            make()
            self._made.add(what)

    def _fill(self, topic: str, workload: Workload, records: int) -> None:
        if topic == EMPTY:
            declare(self._bootstrap, topic)
        else:
            fill_kafka(self._bootstrap, workload.kind or "fresh", records)

    def _changelog(self, one: Contestant, place: Place) -> None:
        """Write a changelog to recover from: what one holds is the contestant's own business."""
        if one.prepare is None:
            declare(self._bootstrap, place.out, **{"cleanup.policy": "compact"})
            headers = dict[str, str | bytes | None](CHANGELOG_HEADERS)
            fill(self._bootstrap, place.out, restored(place.records), headers)
            return
        with tempfile.TemporaryDirectory(prefix="trickle-bench-") as directory:
            to_the_end(one.prepare(msgspec.structs.replace(place, directory=Path(directory))))

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
    fields = [field for _, field, _ in _figures(workload)] + ["cpu_us"]
    return {field: run[field] / before[field] for field in fields if field in run}


def _short(workload: Workload, run: Run) -> str:
    if "void" in run:
        return "void"
    return ", ".join(f"{run[field] / by:,.4g}{what}" for what, field, by in _figures(workload))


def show(name: str, results: dict[str, list[Run]], console: Console) -> None:
    """Print the table of one workload."""
    workload = WORKLOADS[name]
    table = Table(title=workload.title, title_justify="left")
    table.add_column("contestant")
    for title in ("min", "median", "max", "ratio", "CPU µs", "ratio", "MB"):
        table.add_column(title, justify="right")
    for contestant, runs in results.items():
        good = [run for run in runs if "void" not in run]
        for what, field, by in _figures(workload):
            if good:
                table.add_row(contestant + what, *_row(good, field, by))
            else:
                table.add_row(contestant + what, "void")
        if any(run.get("warm_per_second") for run in good):
            rates = [run["warm_per_second"] / 1000 for run in good]
            table.add_row(f"{contestant}, warm", *_spread(rates))
    console.print(table)


def _row(runs: list[Run], field: str, by: float) -> list[str]:
    """Return one line of the table without its name."""
    ratios = [run["ratios"][field] for run in runs if run.get("ratios")]
    cpu = [run["cpu_us"] for run in runs if "cpu_us" in run]
    shares = [run["ratios"]["cpu_us"] for run in runs if "cpu_us" in run.get("ratios", {})]
    memory = [run["peak_mb"] for run in runs if "peak_mb" in run]
    return [
        *_spread([run[field] / by for run in runs]),
        f"{median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})" if ratios else "",
        f"{median(cpu):.2f}" if cpu else "",
        f"{median(shares):.1f}" if shares else "",
        f"{max(memory):,.0f}" if memory else "",
    ]


def _spread(figures: list[float]) -> list[str]:
    return [number(figure) for figure in (min(figures), median(figures), max(figures))]


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
    parser.add_argument("--publish", action="store_true", help="take it into docs/benchmarks.md")
    options = parser.parse_args()
    names: list[str] = options.workloads or list(WORKLOADS)
    if unknown := sorted(set(names) - set(WORKLOADS)):
        parser.error(f"no workload {unknown[0]!r}: there are {', '.join(WORKLOADS)}")
    everybody = {one.name for workload in WORKLOADS.values() for one in workload.contestants}
    if unknown := sorted(set((options.contestants or "bare").split(",")) - everybody):
        parser.error(f"no contestant {unknown[0]!r}: there are {', '.join(sorted(everybody))}")
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
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
    result = {"machine": machine(), "results": results}
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written to benchmarks/results/{path.name}")
    if find_spec("matplotlib") is not None:  # as in the environment of nox -s bench
        draw(results, path.with_suffix(""))
    if options.publish:
        publish(result)
    runs = [run for workload in results.values() for runs in workload.values() for run in runs]
    sys.exit(any("void" in run for run in runs))


def machine() -> dict[str, str | int | None]:
    """Say where and with what the figures were taken."""
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        models = [line.partition(":")[2].strip() for line in cpuinfo if "model name" in line]
    java = subprocess.run(["java", "--version"], capture_output=True, text=True, check=False)
    return {
        "processor": f"{os.cpu_count()} cores, {models[0] if models else platform.machine()}",
        "Python": platform.python_version(),
        "Java": java.stdout.partition("\n")[0],
        **{name: version(name) for name in ("confluent-kafka", "msgspec", "trio", "lmdb")},
        **peer_versions(),
    }


if __name__ == "__main__":
    main()
