"""The plots of docs/benchmarks.md, from the results that stand beside it.

Bars are medians, and the whiskers on them the lowest and the highest run; in brackets stands the
ratio to the bare client. Matplotlib is only in
the environment of ``nox -s bench``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["draw", "number"]

COLOURS = {
    "bare": "#9aa0a6", "trickle": "#1a73e8", "quix": "#e8710a", "faust": "#d93025",
    "bytewax": "#9334e6", "kafka": "#188038",
}  # fmt: skip
RATES = {
    "stateless": "stateless, typed",
    "pipe": "pipe, at-least-once",
    "pipe-eo": "pipe, exactly-once",
    "count": "count per key, exactly-once",
    "fresh": "a new key each event, exactly-once",
    "recovery": "recovery of a table",
}
LATENCIES = {"latency": "at-least-once", "latency-eo": "exactly-once"}


def draw(results: dict[str, dict[str, list[dict[str, Any]]]], into: Path) -> list[Path]:
    """Draw what the results hold, and return the files."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none", "svg.hashsalt": "trickle", "font.size": 8,
            "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
        }
    )  # fmt: skip
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    into.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    rates = {name: title for name, title in RATES.items() if name in results}
    if rates:
        rows = (len(rates) + 1) // 2
        figure, axes = pyplot.subplots(
            rows, min(2, len(rates)), figsize=(9, 2.3 * rows), squeeze=False
        )
        for axis in axes.flat[len(rates) :]:
            axis.set_visible(False)
        for axis, (name, title) in zip(axes.flat, rates.items(), strict=False):
            _bars(axis, results[name], "per_second", 1000, f"{title}: thousand records a second")
        drawn.append(_save(pyplot, figure, into / "throughput.svg"))
    latencies = {name: title for name, title in LATENCIES.items() if name in results}
    if latencies:
        figure, axes = pyplot.subplots(1, len(latencies), figsize=(9, 2.5), squeeze=False)
        for axis, (name, title) in zip(axes.flat, latencies.items(), strict=True):
            _dots(axis, results[name], f"{title}: ms from p50 to p99")
        drawn.append(_save(pyplot, figure, into / "latency.svg"))
    if "startup" in results:
        figure, axis = pyplot.subplots(figsize=(5.5, 2.2))
        _bars(axis, results["startup"], "seconds", 1, "process start to first record: seconds")
        drawn.append(_save(pyplot, figure, into / "startup.svg"))
    return drawn


def number(figure: float) -> str:
    """Return a figure with as many digits as it deserves."""
    if figure >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.2g}" if figure < 10 else f"{figure:.3g}"


def _good(runs: list[dict[str, Any]], field: str) -> list[float]:
    return [run[field] for run in runs if field in run]


def _colour(name: str) -> str:
    return COLOURS[name.split("-", maxsplit=1)[0]]


def _share(runs: list[dict[str, Any]], field: str) -> str:
    ratios = [run["ratios"][field] for run in runs if field in run.get("ratios", {})]
    return f" ({number(median(ratios))})" if ratios else ""


def _bars(
    axis: Any, workload: dict[str, list[dict[str, Any]]], field: str, by: float, title: str
) -> None:
    shown = {name: _good(runs, field) for name, runs in workload.items()}
    shown = {
        name: [figure / by for figure in figures] for name, figures in shown.items() if figures
    }
    names = list(shown)[::-1]
    middles = [median(shown[name]) for name in names]
    spread = [
        [middle - min(shown[name]) for name, middle in zip(names, middles, strict=True)],
        [max(shown[name]) - middle for name, middle in zip(names, middles, strict=True)],
    ]
    axis.barh(names, middles, color=[_colour(name) for name in names], height=0.7)
    axis.errorbar(middles, names, xerr=spread, fmt="none", ecolor="#3c4043", capsize=2, lw=0.8)
    for name, middle in zip(names, middles, strict=True):
        axis.annotate(
            number(middle) + _share(workload[name], field), (max(shown[name]), name),
            xytext=(4, 0), textcoords="offset points", va="center",
        )  # fmt: skip
    axis.margins(x=0.25)
    axis.set_title(title, loc="left", fontsize=8)


def _dots(axis: Any, workload: dict[str, list[dict[str, Any]]], title: str) -> None:
    names = [name for name, runs in workload.items() if _good(runs, "p50_ms")][::-1]
    for name in names:
        low = median(_good(workload[name], "p50_ms"))
        high = median(_good(workload[name], "p99_ms"))
        axis.plot([low, high], [name, name], color=_colour(name), lw=3, marker="o", ms=5)
        axis.annotate(
            f"{number(low)} and {number(high)}", (high, name),
            xytext=(6, 0), textcoords="offset points", va="center",
        )  # fmt: skip
    axis.set_xscale("log")
    axis.margins(x=0.4, y=0.15)
    axis.set_title(title, loc="left", fontsize=8)


def _save(pyplot: Any, figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
