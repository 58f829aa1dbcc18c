"""What each part of the hot path costs, so that a change that makes one dearer is seen.

    python -m benchmarks.parts [part …] [--out FILE] [--against FILE]

Each part runs alone, without a broker, in rounds of some ten thousand events. What counts is the
CPU time of the process, in the median of many rounds; rounds of different parts alternate, so that
a machine that slows down for a while slows down all of them. ``--instructions`` counts what the
processor was told to do instead, by valgrind: slow, but the same to a few thousandths on any day,
however busy the machine. Against an earlier result, what got a tenth dearer is marked, and the
exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.measure import tune_gc
from benchmarks.workbench import PARTS, Bench

__all__ = ["main"]

EVENTS = 40_000
EVENTS_COUNTED = 10_000  # under valgrind, where all is fifty times slower
ROUNDS = 21
DEARER = 1.1
WIDTH = 150  # of the table, where nothing tells
ROOT = Path(__file__).parent.parent


async def measure(names: list[str], rounds: int, events: int) -> dict[str, list[float]]:
    """Return the µs that an event took in each round of each part."""
    took: dict[str, list[float]] = {name: [] for name in names}
    async with contextlib.AsyncExitStack() as stack:
        benches = {name: await stack.enter_async_context(PARTS[name](events)) for name in names}
        tune_gc()
        for number in range(rounds + 1):
            for name, bench in benches.items():
                seconds = await _round(bench)
                if number:  # the first one warms up
                    took[name].append(seconds / bench.events * 1e6)
    return took


async def _round(bench: Bench) -> float:
    gc.collect()
    began = time.process_time()
    await bench.round()
    seconds = time.process_time() - began
    if bench.after is not None:
        await bench.after()
    return seconds


async def repeat(name: str, rounds: int, events: int) -> None:
    """Run some rounds of a part and nothing else: for the counting of instructions."""
    async with PARTS[name](events) as bench:
        gc.disable()
        for _ in range(rounds):
            await bench.round()
            if bench.after is not None:
                await bench.after()
        sys.stdout.write(f"{bench.events}\n")
        sys.stdout.flush()
        os._exit(0)  # what is torn down is none of the part's


def instructions(name: str, events: int) -> float:
    """Return the instructions that an event takes: those of two rounds less those of one."""
    counts: list[int] = []
    handled = 1
    for rounds in (1, 2):
        with tempfile.TemporaryDirectory() as directory:
            done = subprocess.run(
                [
                    *("valgrind", "--tool=cachegrind", "--cache-sim=no"),
                    *(f"--cachegrind-out-file={directory}/out", sys.executable),
                    *("-m", "benchmarks.parts", name, "--repeat", str(rounds)),
                    *("--events", str(events)),
                ],
                capture_output=True, text=True, check=False, timeout=600, cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )  # fmt: skip
        found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
        if done.returncode or found is None:
            raise RuntimeError(f"valgrind failed on {name}:\n{done.stderr[-2000:]}")
        counts.append(int(found.group(1).replace(",", "")))
        handled = int(done.stdout.split()[-1])
    return (counts[1] - counts[0]) / handled


def compare(result: dict[str, Any], before: dict[str, Any], name: str) -> tuple[str, bool]:
    """Return what a part cost before, and whether it is a tenth dearer now."""
    then = before["parts"].get(name)
    if then is None or before["unit"] != result["unit"]:
        return "", False
    now = result["parts"][name]
    ratio = now["median"] / then["median"]
    # A busy moment moves a median; the cheapest round is moved by what the code does.
    dearer = min(ratio, now["min"] / then["min"]) >= DEARER
    return f"{then['median']:,.3f} ({ratio:.2f} times)" + ("  DEARER" if dearer else ""), dearer


def show(result: dict[str, Any], before: dict[str, Any] | None, console: Console) -> bool:
    """Print the table; return whether anything got a tenth dearer."""
    table = Table(title=f"{result['unit']} for each event", title_justify="left")
    for title in ("part", "what it does", "median", "quartiles", "min", "before"):
        words = title in {"part", "what it does"}
        table.add_column(title, justify="left" if words else "right", no_wrap=True)
    worse = False
    for name, cost in result["parts"].items():
        then, dearer = compare(result, before, name) if before else ("", False)
        worse = worse or dearer
        table.add_row(
            name, Text((PARTS[name].__doc__ or "").rstrip(".")), f"{cost['median']:,.3f}",
            f"{cost['low']:,.3f} to {cost['high']:,.3f}", f"{cost['min']:,.3f}", then,
            style="red" if dearer else None,
        )  # fmt: skip
    console.print(table)
    return worse


def main() -> None:
    """Measure the parts named on the command line, or all."""
    parser = argparse.ArgumentParser(description="What each part of the hot path costs.")
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--events", type=int, help="in a round")
    parser.add_argument("--instructions", action="store_true", help="count them, by valgrind")
    parser.add_argument("--out", type=Path, help="where to keep the result")
    parser.add_argument("--against", type=Path, help="an earlier result")
    parser.add_argument("--repeat", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names: list[str] = options.parts or list(PARTS)
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    if options.repeat:
        trio.run(repeat, names[0], options.repeat, options.events or EVENTS_COUNTED)
    costs: dict[str, list[float]] = {}
    if options.instructions:
        for name in names:
            costs[name] = [instructions(name, options.events or EVENTS_COUNTED)]
    else:
        costs = trio.run(measure, names, options.rounds, options.events or EVENTS)
    result: dict[str, Any] = {
        "unit": "instructions" if options.instructions else "µs",
        "parts": {name: _summary(took) for name, took in costs.items()},
    }
    before = json.loads(options.against.read_text()) if options.against else None
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    worse = show(result, before, console)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(worse)


def _summary(took: list[float]) -> dict[str, float]:
    low, _, high = quantiles(took, n=4) if len(took) > 1 else (took[0],) * 3
    return {"median": median(took), "min": min(took), "low": low, "high": high}


if __name__ == "__main__":
    main()
