"""Put results into docs/benchmarks.md: its tables, its plots, and the figures behind them.

``docs/benchmarks/results.json`` holds all single runs. A contestant that was measured again in a
workload replaces its old runs there, with the bare client's, as each run has its ratio to the bare
client's run just before it. What stands between ``<!-- NAME -->`` and
``<!-- end NAME -->`` in the page is written from it. ``python -m benchmarks.publish [FILE …]`` does
so with results that were written earlier; without a file it draws and writes what is there.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contestants import WORKLOADS
from benchmarks.plots import draw, number

__all__ = ["PAGE", "RESULTS", "main", "publish", "written"]

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
HOME = DOCS / "benchmarks"
RESULTS = HOME / "results.json"

FIELDS: dict[str, tuple[tuple[str, str, float], ...]] = {
    "throughput": (("k/s", "per_second", 1000),),
    "latency": (("p50", "p50_ms", 1), ("p99", "p99_ms", 1)),
    "startup": (("s", "seconds", 1),),
}


def publish(fresh: dict[str, Any] | None = None) -> None:
    """Take over fresh results, and write the page's tables and plots."""
    HOME.mkdir(exist_ok=True)
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"results": {}}
    if fresh is not None:
        kept["machine"] = fresh["machine"]
        for name, contestants in fresh["results"].items():
            together = {**kept["results"].get(name, {}), **contestants}
            order = [one.name for one in WORKLOADS[name].contestants]
            kept["results"][name] = {one: together[one] for one in order if one in together}
        RESULTS.write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    PAGE.write_text(written(PAGE.read_text(), kept))
    draw(kept["results"], HOME)


def written(page: str, kept: dict[str, Any]) -> str:
    """Return the page with the tables that the results make."""
    for name, contestants in kept["results"].items():
        page = _between(page, name, table_of(name, contestants))
    return _between(page, "machine", _machine(kept["machine"]))


def _between(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    if begin not in page:
        raise RuntimeError(f"{PAGE.name} has no place for {name}: a line {begin.strip()}")
    return re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        lambda _: begin + text + end,
        page,
        flags=re.DOTALL,
    )


def table_of(name: str, contestants: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table of a workload, in Markdown."""
    fields = FIELDS[WORKLOADS[name].how]
    titles = [
        title for what, _, _ in fields for title in (f"{what}: median", "min to max", "ratio")
    ]
    if not WORKLOADS[name].baseline:
        titles.remove("ratio")
    extra = ["CPU µs", "ratio", "MB"] if WORKLOADS[name].how == "throughput" else []
    lines = [
        "| " + " | ".join(["", *titles, *extra]) + " |",
        "| --- |" + " ---: |" * (len(titles) + len(extra)),
    ]
    for contestant, runs in contestants.items():
        good = [run for run in runs if "void" not in run]
        cells: list[str] = []
        for _, field, by in fields:
            figures = [run[field] / by for run in good]
            if not figures:
                cells += ["void", "", ""]
                continue
            ratios = [run["ratios"][field] for run in good if run.get("ratios")]
            cells.append(number(median(figures)))
            cells.append(f"{number(min(figures))} to {number(max(figures))}")
            if "ratio" in titles:
                cells.append(number(median(ratios)) if ratios else "")
        if extra and good:
            shares = [run["ratios"]["cpu_us"] for run in good if run.get("ratios")]
            cells += [f"{median(run['cpu_us'] for run in good):.2f}"]
            cells += [number(median(shares)) if shares else ""]
            cells += [f"{max(run['peak_mb'] for run in good):,.0f}"]
        lines.append("| " + " | ".join([contestant, *cells]) + " |")
        warm = [run["warm_per_second"] / 1000 for run in good if run.get("warm_per_second")]
        if warm:
            spread = f"{number(min(warm))} to {number(max(warm))}"
            lines.append(f"| {contestant}, warm | {number(median(warm))} | {spread} | | | | |")
    return "\n".join(lines) + "\n"


def _machine(machine: dict[str, Any]) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in machine.items())


def main() -> None:
    """Take over the files named, in their order."""
    parser = argparse.ArgumentParser(description="Put results into docs/benchmarks.md.")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    for file in options.files:
        publish(json.loads(file.read_text()))
    if not options.files:
        publish()


if __name__ == "__main__":
    main()
