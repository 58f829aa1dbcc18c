"""The commands on a real Apache Kafka: what is committed there is what they tell."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.cli.program import APP

if TYPE_CHECKING:
    from tests.cli.program import Project
    from tests.kafka_broker import KafkaBroker


@pytest.mark.kafka
def test_send_work_get_lag_and_tail(project: Project, kafka_broker: KafkaBroker) -> None:
    app = f"flights-{uuid.uuid4().hex[:8]}"  # the broker is shared by the tests of a session
    source = APP.replace('App("flights")', f'App("{app}", broker="{kafka_broker.url}")')
    project.write("app.py", source.replace('topic("flights"', f'topic("{app}"'))
    sent = [
        project.json("send", app, f'{{"carrier": "{carrier}"}}', "--key", carrier)[0]
        for carrier in ("AA", "UA", "AA")
    ]
    assert sent[0]["partition"] == sent[2]["partition"]
    (rows,) = project.json("lag")
    assert sum(row["lag"] for row in rows) == 3

    worker = project.start("worker", "app:app", "--no-web")
    worker.wait_for("ready", 40)
    deadline = time.monotonic() + 40
    while project.do("lag").splitlines()[-1] != "0 behind in all" and time.monotonic() < deadline:
        pass  # each turn is a process that looks
    assert project.do("get", "by_carrier", "AA") == "2\n"
    assert project.do("show", "AA").endswith(" 2 True 2 2 2\n")
    before, after = map(int, project.do("follow", "AA").split())
    assert (before, after) == (2, 3)
    worker.signal()
    assert worker.wait() == 0
    assert "drained and committed" in worker.output

    assert project.json("get", "by_carrier", "UA")[0]["value"] == 1
    records = project.json("tail", app, "--from-beginning", "--no-follow")
    assert sorted(record["value"]["carrier"] for record in records) == ["AA", "AA", "AA", "UA"]
    # A changelog ends in transaction markers, which are no records: it must end all the same.
    changes = project.json("tail", f"{app}-by_carrier-changelog", "--from-beginning", "--no-follow")
    assert {change["key"] for change in changes} == {"AA", "UA"}
