"""The app's own commands: they send, and read what is committed, whoever holds it."""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests.cli.test_get import fill

if TYPE_CHECKING:
    from tests.cli.program import Project


def test_a_command_reads_before_any_worker_beside_one_after_it_and_without_its_store(
    project: Project,
) -> None:
    assert project.do("show", "AA") == "{} [] 0 False 0 None None\n"
    fill(project, "AA", "UA", "AA")
    worker = project.start("worker", "app:app", "--no-web")
    worker.wait_for("ready")
    # It begins at what is committed then, and sees the worker's commits as they come.
    before, after = map(int, project.do("follow", "AA").split())
    assert before < after <= 3
    while project.do("get", "by_carrier", "AA") != "3\n":
        pass  # each turn is a process that looks
    shown = "{'UA': 1, 'AA': 3} ['UA', 'AA'] 2 True 3 3 3\n"
    assert project.do("show", "AA") == shown
    worker.signal()
    assert worker.wait() == 0
    assert project.do("show", "AA") == shown
    shutil.rmtree(project.path / ".trickle" / "flights" / "tables")
    assert project.do("show", "AA") == shown
    assert project.do("show", "B6") == shown.replace("True 3 3 3", "False 0 None None")


def test_a_command_does_not_write_tables(project: Project) -> None:
    done = project.run("-A", "app:app", "count-in-vain", "AA")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "trickle: table 'by_carrier' can be read here, not written: only an agent writes it, while "
        "it handles an event; send an event to an agent that does\n"
    )


@pytest.mark.parametrize("args", [("--debug", "fail"), ("fail", "--debug")])
def test_debug_shows_a_commands_traceback(project: Project, args: tuple[str, str]) -> None:
    project.write(
        "app.py",
        """
import trickle
app = trickle.App("flights")

@app.command()
async def fail() -> None:
    raise ValueError("in vain")
""",
    )
    done = project.run("-A", "app:app", "fail")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "trickle: ValueError: in vain (app.py:7 in fail)\ntrickle: --debug shows the traceback\n"
    )
    done = project.run("-A", "app:app", *args)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith("trickle: ValueError: in vain (app.py:7 in fail)\n")


@pytest.mark.parametrize("args", [["topics"], ["send", "words", "x"], ["fine"], ["--help"]])
def test_a_command_of_a_name_that_is_taken_is_refused_whatever_is_called(
    project: Project, args: list[str]
) -> None:
    project.write(
        "app.py",
        """
import trickle
app = trickle.App("flights")

@app.command(name="send")
async def mine() -> None: ...

@app.command()
async def fine() -> None: ...
""",
    )
    done = project.run("-A", "app:app", *args)
    assert done.returncode == 2
    assert done.stderr == (
        "trickle: the command 'send' of app 'flights' has the name of one of trickle's own: give "
        "it another by @app.command(name)\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_told_to_end_closes_what_it_has_opened(
    project: Project, number: signal.Signals
) -> None:
    project.write(
        "app.py",
        """
import trickle, trio
app = trickle.App("flights")

@app.command()
async def wait() -> None:
    try:
        print("waits", flush=True)
        await trio.sleep_forever()
    finally:
        print("has closed", flush=True)
""",
    )
    command = project.start("-A", "app:app", "wait")
    command.wait_for("waits")
    command.signal(number)
    assert command.wait() == 3
    assert command.output.endswith("has closed\ntrickle: stopped by a signal\n")
