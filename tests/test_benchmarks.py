"""The benchmarks go on working: what they set up by hand is the engine's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.contestants import WORKLOADS
from benchmarks.parts import compare, measure
from benchmarks.publish import PAGE, RESULTS, written
from benchmarks.workbench import PARTS


async def test_each_part_runs_alone() -> None:
    took = await measure(list(PARTS), rounds=1, events=2_000)
    assert {name: len(rounds) for name, rounds in took.items()} == dict.fromkeys(PARTS, 1)
    assert all(rounds[0] > 0 for rounds in took.values())


def _result(median: float, lowest: float) -> dict[str, Any]:
    return {"unit": "µs", "parts": {"settle": {"median": median, "min": lowest}}}


@pytest.mark.parametrize(
    ("median", "lowest", "dearer"), [(1.12, 1.11, True), (1.12, 1.0, False), (1.05, 1.05, False)]
)
def test_what_got_a_tenth_dearer_is_marked(median: float, lowest: float, dearer: bool) -> None:
    said, marked = compare(_result(median, lowest), _result(1.0, 1.0), "settle")
    assert said == f"1.000 ({median:.2f} times)" + ("  DEARER" if dearer else "")
    assert marked is dearer


def test_the_bare_client_stands_first_wherever_there_is_a_baseline() -> None:
    first = {work.contestants[0].name for work in WORKLOADS.values() if work.baseline}
    assert first == {"bare"}
    for work in WORKLOADS.values():
        names = [one.name for one in work.contestants]
        assert len(set(names)) == len(names)


def test_the_page_says_what_the_results_say() -> None:
    page = PAGE.read_text()
    kept = json.loads(RESULTS.read_text())
    assert set(kept["results"]) == set(WORKLOADS)
    assert written(page, kept) == page
