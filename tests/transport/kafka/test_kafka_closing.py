"""The end of a process whose clients do not close."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import atexit, sys, threading
atexit.register(print, "the interpreter's end")
from trickle.cli import main
from trickle.transport.kafka import closing

class Stuck:
    def close(self):
        threading.Event().wait(seconds)

seconds, closing._LAST_WAIT_S = map(float, sys.argv.pop().split("/"))
closing.bury(Stuck())
sys.exit(main())
"""


def run(*args: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *args],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_a_command_does_not_reach_the_interpreters_end_beside_a_client_that_is_closing() -> None:
    code, output = run("--version", "60/0.1")
    assert (code, output.split()[0]) == (0, "trickle")
    assert "the interpreter's end" not in output
    assert run("no-such-command", "60/0.1") == (2, "")


def test_a_client_that_closes_in_time_is_waited_for() -> None:
    code, output = run("--version", "0.1/60")
    assert code == 0
    assert output.endswith("the interpreter's end\n")
