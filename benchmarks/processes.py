"""A contestant's process: run to its end, watched until its first record, or kept for a while."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

from benchmarks.contestants import Contestant, Place

__all__ = ["Void", "first_record", "kept", "to_the_end"]

ROOT = Path(__file__).parent.parent
RUN_SECONDS_MAX = 300
FIRST_SECONDS_MAX = 60
END_SECONDS_MAX = 30
TOLD_CHARS_MAX = 800


class Void(Exception):
    """A run that failed, or whose result is wrong."""


def to_the_end(command: list[str]) -> dict[str, Any]:
    """Run a contestant until it ends, and return what it measured: its last line that is JSON."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=RUN_SECONDS_MAX, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        raise Void(f"it did not end within {RUN_SECONDS_MAX} seconds") from None
    if done.returncode:
        raise Void(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-TOLD_CHARS_MAX:]}")
    for line in reversed(done.stdout.splitlines()):
        _, result, rest = line.partition('{"records"')  # a peer may say something before it
        if result:
            measured: dict[str, Any] = json.loads(result + rest)
            return measured
    raise Void(f"it printed no result: {(done.stdout + done.stderr)[-TOLD_CHARS_MAX:]}")


def first_record(one: Contestant, place: Place) -> dict[str, Any]:
    """Return the seconds from the start of a contestant's process to its first record."""
    one.command(place)  # makes the environment, where it is missing
    began = time.monotonic()
    with kept(one, place, subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:  # ends with the process, if that ends without a record
            if '{"first"' in line:
                return {"seconds": time.monotonic() - began}
    raise Void("it ended without a first record")


@contextlib.contextmanager
def kept(
    one: Contestant, place: Place, stdout: int | None = None
) -> Generator[subprocess.Popen[str]]:
    """Keep a contestant's process while the block runs, then end it by SIGTERM."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            one.command(place), stdout=said if stdout is None else stdout, stderr=said,
            text=True, cwd=ROOT,
        )  # fmt: skip
        try:
            yield process
        except RuntimeError as error:
            raise Void(f"{error}; {_tail(said)}") from error
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _tail(said: IO[str]) -> str:
    said.seek(0)
    return said.read()[-TOLD_CHARS_MAX:]
