"""Concurrency on a real Apache Kafka: what settled beyond a gap survives a SIGKILL."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.cli.program import Project
from tests.kafka_broker import KafkaBroker

COUNT = 400
KEYS = 40
STUCK = (0, 45, 90)  # until their file is gone

APP = """
from pathlib import Path
import trio
import trickle

app = trickle.App("NAME", broker="BROKER", session_timeout=6)
numbers = app.topic("NAME", key=str, value=int, partitions=1)
out = app.topic("NAME-out", key=str, value=int, partitions=1)
totals = app.table("totals", key=str, value=int, default=int)

@app.agent(numbers, concurrency=50)
async def total(stream: trickle.Stream[int, str]) -> None:
    async for event in stream.events():
        number = event.value
        print(f"handled {number}.", flush=True)
        totals[event.key] += number
        out.send_nowait(number, key=event.key)
        event.after_commit(lambda number=number: print(f"committed {number}.", flush=True))
        await trio.sleep(number % 7 / 100)
        if number in STUCK and Path("stuck").exists():
            await trio.sleep_forever()

@app.command()
async def load() -> None:
    await numbers.send_all((f"k{number % KEYS}", number) for number in range(COUNT))
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project without an app yet."""
    made = Project(tmp_path, "")
    yield made
    made.close()


@pytest.mark.kafka
def test_what_settled_beyond_a_gap_survives_a_kill(
    project: Project, kafka_broker: KafkaBroker
) -> None:
    """Three events hang, and hold back their keys; all others are committed, then SIGKILL comes."""
    name = f"concurrency-{uuid.uuid4().hex[:8]}"
    source = APP.replace("NAME", name).replace("BROKER", kafka_broker.url)
    for constant, value in {"COUNT": COUNT, "KEYS": KEYS, "STUCK": STUCK}.items():
        source = source.replace(constant, str(value))
    project.write("app.py", source)
    project.write("stuck", "")
    held = {n for s in STUCK for n in range(s, COUNT, KEYS)}
    project.do("load", code=0)
    first = project.start("worker", "app:app", "--no-web")
    for number in set(range(COUNT)) - held:
        first.wait_for(f"committed {number}.", 40)
    first.signal(SIGKILL)
    first.wait()
    assert numbers_of("committed", first.output) == sorted(set(range(COUNT)) - held)
    (project.path / "stuck").unlink()
    second = project.start("worker", "app:app", "--no-web")
    for number in held:
        second.wait_for(f"committed {number}.", 60)
    second.signal()
    assert second.wait(30) == 0, second.output
    assert numbers_of("handled", second.output) == sorted(held)
    rows = project.json("tail", f"{name}-out", "--from-beginning", "--no-follow")
    assert sorted(row["value"] for row in rows) == list(range(COUNT))
    by_key = {f"k{n}": [r["value"] for r in rows if r["key"] == f"k{n}"] for n in range(KEYS)}
    assert by_key == {f"k{n}": list(range(n, COUNT, KEYS)) for n in range(KEYS)}
    totals = {row["key"]: row["value"] for row in project.json("get", "totals")}
    assert totals == {key: sum(numbers) for key, numbers in by_key.items()}
    assert project.json("lag")[0][0]["lag"] == 0


def numbers_of(what: str, output: str) -> list[int]:
    return sorted(map(int, re.findall(rf"{what} (\d+)\.", output)))
