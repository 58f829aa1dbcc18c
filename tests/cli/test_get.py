"""``trickle get``: committed values while a worker runs, after it, and without its store."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.program import Project


def fill(project: Project, *carriers: str) -> None:
    for carrier in carriers:
        project.do("send", "flights", f'{{"carrier": "{carrier}"}}', "--key", carrier)


def test_get_before_any_worker_says_so(project: Project) -> None:
    done = project.run("-A", "app:app", "get", "by_carrier", "AA")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(
        "trickle: table 'by_carrier' has no changelog 'flights-by_carrier-changelog' on lmdb://"
    )


def test_get_while_a_worker_runs_after_it_and_without_its_store(project: Project) -> None:
    fill(project, "AA", "UA", "AA")
    worker = project.start("worker", "app:app", "--no-web")
    worker.wait_for("ready")
    for _ in range(100):  # each turn is a process that looks
        if project.run("-A", "app:app", "get", "by_carrier", "UA").returncode == 0:
            break
    while project.do("get", "by_carrier", "AA") != "2\n":
        pass
    worker.signal()
    assert worker.wait() == 0

    expected = {"table": "by_carrier", "partition": 1, "key": "AA", "value": 2}
    assert project.json("get", "by_carrier", "AA") == [expected]
    shutil.rmtree(project.path / ".trickle" / "flights" / "tables")
    assert project.json("get", "by_carrier", "AA") == [expected]
    rows = project.json("get", "by_carrier")
    assert sorted((row["key"], row["value"]) for row in rows) == [("AA", 2), ("UA", 1)]
    assert project.do("get", "by_carrier").splitlines() == ["UA   1", "AA   2"]


def test_get_of_a_key_that_is_absent_or_cannot_be(project: Project) -> None:
    fill(project, "AA")
    worker = project.start("worker", "app:app", "--no-web")
    worker.wait_for("ready")
    worker.signal()
    assert worker.wait() == 0
    done = project.run("-A", "app:app", "get", "by_carrier", "ZZ", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "trickle: table 'by_carrier' has no key 'ZZ'\n"
    done = project.run("-A", "app:app", "get", "by_carier", "AA")
    assert done.returncode == 2
    assert done.stderr == (
        "trickle: app 'flights' has no table 'by_carier' (did you mean 'by_carrier'?): its tables "
        "are by_carrier\n"
    )
