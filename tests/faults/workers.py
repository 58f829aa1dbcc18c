"""Workers: processes that run the app, each in a slot with a data directory of its own.

A slot's process may end because we killed it, because it was told to, or by itself. The last is a
finding, unless a fault allows it. Its output is kept in a file for each slot.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

__all__ = ["CLOCK", "FILE_BYTES", "Slot"]

FILE_BYTES = "FAULTS_FILE_BYTES"
"""How large a worker's files may be."""

CLOCK = "FAULTS_CLOCK"
"""The days by which a worker's clock jumps at most, to and fro."""

_HERE = Path(__file__).parent
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

State = Literal["empty", "running", "stopped", "ending", "dead"]


class Slot:
    """A place for a worker, with its data directory.

    Attributes:
        number: of the slot.
        data: its data directory.
        state: ``stopped`` is a process that SIGSTOP holds, ``ending`` one that was told to end.
        restart_at: when a dead one is started again (monotonic seconds); None: not by itself.
        fail_point: the one that the running process has armed.
        limited: the running process may not write large files.
        starts: how many processes there have been.
        told_twice: to end, so that it may cancel what it would have drained.
        rss_bytes: resident memory of its own, by seconds of uptime.
        mapped_bytes: what of the files that it maps is in memory: the stores' pages, which the
            kernel takes back when it needs them, and libraries.
    """

    def __init__(self, number: int, data: Path, environment: Mapping[str, str], log: Path) -> None:
        self.number = number
        self.data = data
        self.state: State = "empty"
        self.restart_at: float | None = None
        self.next_fail_point = ""
        self.next_environment: dict[str, str] = {}
        self.fail_point = ""
        self.limited = False
        self.starts = 0
        self.started_at = 0.0
        self.told_at = 0.0
        self.told_twice = False
        self.rss_bytes: dict[int, int] = {}
        self.mapped_bytes: dict[int, int] = {}
        self._environment = environment
        self._log = log
        self._aside = log.with_suffix(".aside")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a worker, with the fail point and what else was asked for, if anything."""
        self.fail_point, self.next_fail_point = self.next_fail_point, ""
        special, self.next_environment = self.next_environment, {}
        self.limited = FILE_BYTES in special
        environment = {**os.environ, **self._environment, **special, "FAULTS_DATA": str(self.data)}
        environment.pop("_TRICKLE_FAIL_POINT", None)
        if self.fail_point:
            environment["_TRICKLE_FAIL_POINT"] = self.fail_point
        with self._log.open("ab") as log:
            armed = f", {self.fail_point} armed" if self.fail_point else ""
            armed += "".join(f", {name}={value}" for name, value in special.items())
            log.write(f"--- start {self.starts}{armed}\n".encode())
        # What limits the worker's files would limit its log as well.
        with (self._aside if self.limited else self._log).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trickle", "worker", "app:app", "--no-web"],
                cwd=_HERE,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts += 1
        self.started_at = time.monotonic()
        self.restart_at = None
        self.told_twice = False
        self.rss_bytes = {}
        self.mapped_bytes = {}
        self.state = "running"

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if there is a process."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def stop(self) -> None:
        """Freeze it."""
        self.send(signal.SIGSTOP)
        self.state = "stopped"

    def resume(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)
        if self.state == "stopped":
            self.state = "running"

    def terminate(self) -> None:
        """Tell it to end."""
        self.resume()
        self.send(signal.SIGTERM)
        self.state = "ending"
        self.told_at = time.monotonic()

    def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(30)
        self._is_dead()

    def ended(self) -> int | None:
        """Return the exit code of a process that has ended since the last call."""
        process = self._process
        if process is None:
            return None
        code = process.poll()
        if code is not None:
            self._process = None
            self._is_dead()
        return code

    def _is_dead(self) -> None:
        self.state = "dead"
        if self._aside.exists():
            with self._log.open("ab") as log:
                log.write(self._aside.read_bytes())
            self._aside.unlink()

    def output(self) -> str:
        """Return all that its processes have said, but for what the app's own flaws make it say."""
        text = ""
        for file in (self._log, self._aside):
            with contextlib.suppress(OSError):
                text += file.read_text(errors="replace")
        return "\n".join(line for line in text.splitlines() if "FlakyError" not in line)

    def was_ready(self) -> bool:
        """Tell whether the last process had joined its group."""
        return "ready after" in self.last_output()

    def last_output(self) -> str:
        """Return what the last process has said."""
        return self.output().rpartition("--- start ")[2].partition("\n")[2]

    def tail(self, lines: int = 12) -> str:
        """Return the last lines of its output."""
        return "\n".join(self.output().splitlines()[-lines:])

    def sample(self) -> None:
        """Note how much memory it holds."""
        process = self._process
        if process is None or self.state != "running":
            return
        with contextlib.suppress(OSError, ValueError, IndexError):
            resident, shared = Path(f"/proc/{process.pid}/statm").read_text().split()[1:3]
            at = int(time.monotonic() - self.started_at)
            self.rss_bytes[at] = (int(resident) - int(shared)) * _PAGE_BYTES
            self.mapped_bytes[at] = int(shared) * _PAGE_BYTES
