"""A user's project in a directory of its own, and ``trickle`` as a process in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["APP", "Process", "Project"]

APP = """
import trickle

class Flight(trickle.Model):
    carrier: str
    delay: float | None = None

app = trickle.App("flights")
flights = app.topic("flights", key=str, value=Flight, partitions=2)
words = app.topic("words", key=str, value=str, partitions=1)
by_carrier = app.table("by_carrier", key=str, value=int, default=int, source=flights)

@app.agent(flights)
async def delays(stream: trickle.Stream[Flight]) -> None:
    async for flight in stream:
        by_carrier[flight.carrier] += 1

@app.command()
async def load(word: str, times: int = 1) -> None:
    "Send a word so many times."
    for _ in range(times):
        await words.send(word, key=word)
    print("sent", times)

@app.command()
async def show(carrier: str) -> None:
    "Show what is counted of a carrier."
    counts = dict(by_carrier), list(by_carrier), len(by_carrier), carrier in by_carrier
    print(*counts, by_carrier[carrier], by_carrier.get(carrier), await by_carrier.query(carrier))

@app.command()
async def count_in_vain(carrier: str) -> None:
    by_carrier[carrier] += 1

@app.command()
async def follow(carrier: str) -> None:
    "Send a flight, and wait until it is counted."
    import trio
    before = by_carrier[carrier]
    await flights.send(Flight(carrier), key=carrier)
    while by_carrier[carrier] == before:
        await trio.sleep(0.01)
    print(before, by_carrier[carrier])
"""


class Process:
    """A running ``trickle``; what it writes is read by threads, so that no pipe fills."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self._lines: list[str] = []
        self._grew = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(pipe,), daemon=True)
            for pipe in (popen.stdout, popen.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                with self._grew:
                    self._lines.append(line)
                    self._grew.notify_all()

    @property
    def output(self) -> str:
        """All that it has written so far, standard output and error in one."""
        with self._grew:
            return "".join(self._lines)

    def wait_for(self, text: str, timeout: float = 20.0) -> str:
        """Wait until a line with this text has come, and return it."""
        with self._grew:
            found = self._grew.wait_for(
                lambda: next((line for line in self._lines if text in line), None), timeout
            )
        if found is None:
            self.popen.kill()
            raise AssertionError(f"{text!r} did not come within {timeout} s:\n{self.output}")
        return found

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for its end and return its exit code."""
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise AssertionError(f"it did not end within {timeout} s:\n{self.output}") from None
        for reader in self._readers:
            reader.join(5)
        return code


class Project:
    """A directory with an ``app.py``."""

    def __init__(self, path: Path, source: str = APP) -> None:
        self.path = path
        self._started: list[Process] = []
        self.write("app.py", source)
        self.write("pyproject.toml", "")

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        (self.path / name).write_text(text)

    def files(self) -> set[str]:
        """Return what is there, but for Python's caches."""
        return {
            str(file.relative_to(self.path))
            for file in self.path.rglob("*")
            if "__pycache__" not in file.parts
        }

    def _arguments(self, args: tuple[str, ...], env: dict[str, str] | None) -> dict[str, Any]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("TRICKLE_")}
        environ |= {"COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        return {
            "args": [sys.executable, "-m", "trickle", *args],
            "cwd": self.path, "env": environ, "text": True,
            "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
        }  # fmt: skip

    def run(
        self,
        *args: str,
        stdin: str = "",
        env: dict[str, str] | None = None,
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            **self._arguments(args, env), input=stdin, timeout=timeout, check=False
        )

    def do(self, *args: str, stdin: str = "", code: int = 0) -> str:
        """Run a command of the app, which must end so, and return its standard output."""
        done = self.run("-A", "app:app", *args, stdin=stdin)
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *args: str, code: int = 0) -> Any:
        """Run a command with ``--json`` and return the documents of its lines."""
        return [json.loads(line) for line in self.do(*args, "--json", code=code).splitlines()]

    def start(self, *args: str, env: dict[str, str] | None = None) -> Process:
        """Start a command, to be signalled or waited for."""
        process = Process(subprocess.Popen(**self._arguments(args, env), stdin=subprocess.DEVNULL))
        self._started.append(process)
        return process

    def close(self) -> None:
        """Kill what still runs."""
        for process in self._started:
            if process.popen.poll() is None:
                process.popen.kill()
            process.wait()
