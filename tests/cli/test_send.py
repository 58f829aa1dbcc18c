"""Where ``trickle send`` sends: not into changelogs, and to where an agent's source begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.test_usage import told

if TYPE_CHECKING:
    from tests.cli.program import Project

REGROUPED = """
import trickle

class Flight(trickle.Model):
    carrier: str
    origin: str

app = trickle.App("flights")
flights = app.topic("flights", key=str, value=Flight, partitions=2)
copies = app.topic("copies", key=str, value=Flight, partitions=2)
by_origin = flights.through(copies).group_by("origin", name="by-origin")
counts = app.table("counts", key=str, value=int, default=int, source=by_origin)

@app.agent(by_origin)
async def per_airport(stream: trickle.Stream[Flight]) -> None:
    async for flight in stream:
        counts[flight.origin] += 1
"""


def test_a_changelog_is_not_sent_to(project: Project) -> None:
    assert told(project, "-A", "app:app", "send", "flights-by_carrier-changelog", "1") == (
        "trickle: TOPIC 'flights-by_carrier-changelog' is the changelog of table 'by_carrier': "
        "only the table itself writes it, and any other record would break each recovery; send an "
        "event to an agent that writes the table"
    )


def test_what_is_sent_to_an_agent_is_regrouped_on_its_way(project: Project) -> None:
    project.write("app.py", REGROUPED)
    flight = '{"carrier": "AA", "origin": "OSL"}'
    (sent,) = project.json("send", "per_airport", flight, "--key", "AA")
    assert sent["topic"] == "flights"
    worker = project.start("worker", "app:app", "--no-web")
    worker.wait_for("ready")
    while project.run("-A", "app:app", "get", "counts", "OSL").stdout != "1\n":
        pass  # each turn is a process that looks
    worker.signal()
    assert worker.wait() == 0


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("-86400.5", -86400.5),
        ("0", 0.0),
        ("2026-01-01T00:00:00Z", 1767225600.0),
        ("2026-01-01T01:00:00.250+01:00", 1767225600.25),
        ("1969-12-31T00:00:00Z", -86400.0),
    ],
)
def test_a_timestamp_is_any_time(project: Project, written: str, seconds: float) -> None:
    (sent,) = project.json("send", "words", "x", "--timestamp", written)
    (record,) = project.json("tail", "words", "--from-beginning", "--no-follow")
    assert sent["timestamp"] == record["timestamp"] == seconds


@pytest.mark.parametrize("written", ["2026-01-01T00:00:00", "yesterday", "nan", "1e300"])
def test_what_is_no_time_or_has_no_zone(project: Project, written: str) -> None:
    assert told(project, "-A", "app:app", "send", "words", "x", "--timestamp", written) == (
        f"trickle: --timestamp {written!r}: write POSIX seconds, like 1767225600.0, or ISO 8601 "
        "with its zone, like 2026-01-01T00:00:00Z"
    )
