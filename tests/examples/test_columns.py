"""The example on columns counts what was sent, by both of its ways."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READINGS = 20_000


def run(directory: Path, *command: str) -> str:
    environment = {**os.environ, "TRICKLE_DATA_DIR": str(directory), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=100,
    ).stdout  # fmt: skip


def test_both_agents_have_counted_every_reading(tmp_path: Path) -> None:
    """It runs twice, on the same data: what is kept in tables goes on."""
    for _ in range(2):
        example = run(tmp_path, "docs/examples/columns.py", "--readings", str(READINGS))
        assert f"{READINGS:,} readings sent, and counted by both agents" in example

    celsius: dict[int, list[float]] = defaultdict(list)
    for _ in range(2):
        dice = random.Random(7)
        for _ in range(READINGS):
            celsius[dice.randrange(20)].append(round(dice.gauss(20, 5), 2))

    for table in ("by_reading", "by_batch"):
        lines = run(
            tmp_path, "-m", "trickle", "-A", "docs.examples.columns:app", "get", table, "--json"
        ).splitlines()
        found = {entry["key"]: entry["value"] for entry in map(json.loads, lines)}
        assert found.keys() == celsius.keys()
        for sensor, values in celsius.items():
            assert found[sensor]["readings"] == len(values)
            assert found[sensor]["sum"] == pytest.approx(sum(values))
            assert found[sensor]["highest"] == max(values)
