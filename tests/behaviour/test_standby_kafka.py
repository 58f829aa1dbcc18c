"""Standby replicas on a real Apache Kafka: two processes, each with a data directory of its own."""

from __future__ import annotations

import re
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.program import Process, Project
from tests.kafka_broker import KafkaBroker

COUNT = 2_000

APP = """
import trickle
from trickle.sensors import BaseSensor

class Recoveries(BaseSensor):
    def recovered(self, table, partition, records, seconds):
        print(f"replayed {records} of {table}, partition {partition}", flush=True)

app = trickle.App(
    "NAME", sensors=[Recoveries()], broker="BROKER", standby_replicas=1, session_timeout=6,
    group_protocol="PROTOCOL",
)
numbers = app.topic("NAME", key=str, value=int, partitions=2)
totals = app.table("totals", key=str, value=int, default=int, source=numbers)

@app.agent(numbers, name="total")
async def total(stream: trickle.Stream[int, str]) -> None:
    async for event in stream.events():
        totals[event.key] += event.value

@app.command()
async def load(first: int, last: int) -> None:
    for number in range(first, last):
        await numbers.send(number, key=f"k{number}")
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project without an app yet."""
    made = Project(tmp_path, "")
    yield made
    made.close()


def start(project: Project, name: str) -> Process:
    env = {"TRICKLE_DATA_DIR": str(project.path / name)}
    return project.start("worker", "app:app", "--no-web", env=env)


def settle(project: Project) -> None:
    """Wait until all that was sent is committed."""
    while sum(row["lag"] for row in project.json("lag")[0]):
        pass  # each turn is a process that looks


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("protocol", "end"), [("classic", signal.SIGKILL), ("consumer", signal.SIGTERM)]
)
def test_a_takeover_replays_the_tail_alone(
    project: Project, kafka_broker: KafkaBroker, protocol: str, end: signal.Signals
) -> None:
    """One worker has it all, a second comes, and the first one ends: nothing is read twice."""
    name = f"standby-{uuid.uuid4().hex[:8]}"
    source = APP.replace("NAME", name).replace("BROKER", kafka_broker.url)
    project.write("app.py", source.replace("PROTOCOL", protocol))
    first = start(project, "a")
    first.wait_for("ready", 40)
    project.do("load", "0", str(COUNT))
    settle(project)
    second = start(project, "b")
    line = second.wait_for("has caught up", 60)
    found = re.search(r"standby of partition (\d) of totals has caught up: (\d+) records", line)
    assert found is not None
    partition, records = int(found[1]), int(found[2])
    recovered = second.wait_for(f"of totals, partition {1 - partition}", 1)
    assert records + int(recovered.split()[1]) == COUNT
    assert "standby for 1 partitions" in first.wait_for("standby for", 20)
    project.do("load", "0", "4")
    settle(project)
    first.signal(end)
    first.wait()
    second.wait_for("2 partitions assigned", 60)
    project.do("load", "0", "8")
    settle(project)
    second.signal()
    assert second.wait(30) == 0, second.output
    told = "session_timeout (argument) has no effect" in second.output
    assert told == (protocol == "consumer")
    again = re.findall(rf"replayed (\d+) of totals, partition {partition}\b", second.output)
    assert sum(map(int, again)) <= 4
    totals = [int(project.do("get", "totals", f"k{n}", code=0)) for n in (1, 3, 5, 9, 1999)]
    assert totals == [3, 9, 10, 9, 1999]
