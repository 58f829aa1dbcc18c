"""Worker: puts a Run of an App into a process of its own.

What a process adds to ``async with app.run()``: signals, a bounded end, the memory's settings, an
exit code, and a look inside for who debugs it.

**Signals.** The first SIGTERM or SIGINT drains: each lane finishes the event in hand, what has
settled is committed, and the process exits with 0. The second cancels at once; events in hand are
dropped without a trace, and run again elsewhere. The third leaves the process where it stands.
Nothing is lost by any of them: what was not committed has not happened.

The handlers are plain ones of :mod:`signal`, not ``trio.open_signal_receiver``: theirs is the same
way into Trio, but the *deadline* is armed in the handler itself. So an agent that blocks the event
loop (``time.sleep``, an endless loop), which no task of ours could get past, is bounded as well.

**The end is bounded.** A thread counts down from the first signal. When the drain, and the closing
behind it, have not ended by then (an agent shielded from its cancellation, a client library that
hangs), it says what hangs, and leaves the process with exit code 3. That thread is started by
``_thread`` itself: :mod:`threading` takes locks, and a signal handler may run while the
interrupted code holds them.
"""

from __future__ import annotations

import _thread
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import msgspec
import trio

from trickle.app import App
from trickle.config import Resolved
from trickle.run import Run, Surroundings
from trickle.service import Service
from trickle.utils.memory import bound_heap, give_back

__all__ = [
    "EXIT_STOPPED",
    "LINGER_TIMEOUT_S",
    "Deadline",
    "Ending",
    "Observer",
    "Worker",
    "lane_words",
    "thread_words",
]

logger = logging.getLogger("trickle.worker")

EXIT_STOPPED = 3
CLOSING_TIMEOUT_S = 5.0  # beyond drain_timeout: lanes are cancelled, clients closed
CANCEL_TIMEOUT_S = 3.0  # from the second signal on
LINGER_TIMEOUT_S = 2.0  # that threads of the app's own may keep a process that is done
GC_THRESHOLD = 50_000  # with gc.freeze(), 8 to 10 % of throughput, as measured
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker ended.

    Attributes:
        error: what ended it, where no signal did; the worker raises it.
        signal: the name of the first signal; None where there was none.
        ready: it had joined, and its shards were recovered.
        drained: every lane finished the event in hand, and all that settled was committed.
        undrained: the lanes that did not finish, as ``agent[partition]``.
        seconds: from the first signal to the end.
        uptime: seconds from the start to the end.
    """

    error: Exception | None
    signal: str | None
    ready: bool
    drained: bool
    undrained: tuple[str, ...]
    seconds: float
    uptime: float

    @property
    def exit_code(self) -> int:
        """0 where it drained, 3 where it was stopped before that; an error has its own."""
        return 0 if self.drained else EXIT_STOPPED


class Observer(Protocol):
    """Told of what happens to a worker; what prints is not the worker's business."""

    def starting(self) -> None:
        """Signals are handled from now on, and the Run begins to join and recover."""
        ...

    async def watch(self, run: Run) -> None:
        """Look on while the Run joins and recovers; cancelled when it is ready, or has ended."""
        ...

    def ready(self, run: Run, seconds: float) -> None:
        """The Run has joined and recovered, so many seconds after the start."""
        ...

    def stopping(self, name: str) -> None:
        """The first signal has come, by its name."""
        ...

    def ended(self, run: Run, ending: Ending) -> None:
        """The Run has ended."""
        ...


class Deadline:
    """Leaves the process at a moment that can be moved, whatever its threads and tasks do."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._code = EXIT_STOPPED
        self._last_words: Callable[[], str] = str
        self._counting = False

    def arm(self, seconds: float, code: int, last_words: Callable[[], str] = str) -> None:
        """Leave in so many seconds, with an exit code and words for standard error.

        A signal handler may call it.
        """
        self._code = code
        self._last_words = last_words
        self._at = time.monotonic() + seconds
        if not self._counting:
            self._counting = True
            _thread.start_new_thread(self._count_down, ())

    def disarm(self) -> None:
        """Do not leave."""
        self._at = None

    def _count_down(self) -> None:
        # It goes on when nothing is armed: an end of its own could meet the next arm().
        while True:
            at = self._at
            left = 0.1 if at is None else at - time.monotonic()
            if left <= 0:
                self._leave()
            time.sleep(min(left, 0.1))

    def _leave(self) -> None:
        try:
            words = self._last_words()
            if words:
                os.write(2, f"trickle: {words}\n".encode(errors="backslashreplace"))
        finally:
            os._exit(self._code)


class Worker(Service):
    """Runs an App until a signal, or an error, ends it.

    Args:
        app: what to run.
        resolved: its effective settings.
        observer: told of the start and the end.
        whole: the process is there for this worker, and ends with it: the garbage collector and
            the C library's memory are set for that, and signals have no effect after the end.
    """

    name = "Worker"

    def __init__(
        self, app: App, resolved: Resolved, observer: Observer, *, whole: bool = True
    ) -> None:
        super().__init__()
        self._app = app
        self._resolved = resolved
        self._observer = observer
        self._whole = whole
        self._started_at = 0.0
        self._ready = False
        self._starting = trio.CancelScope()
        self._running = trio.CancelScope()
        self._signals = 0
        self._signal: str | None = None
        self._signalled_at = 0.0
        self.deadline = Deadline()
        self.ending: Ending | None = None

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        """Run until stopped; what the Run raises leaves from here."""
        self._started_at = time.monotonic()
        if self._whole:
            bound_heap()
            self.nursery.start_soon(self._stay_small)
        run = Run(self._app.definitions(), self._resolved, Surroundings(), client=False)
        self._children.append(run)
        with self._app.season.closed(), self._listening(run):
            self._observer.starting()
            self.nursery.start_soon(self._watch, run)
            try:
                await run.run(task_status=_Ready(lambda: self._on_ready(run), task_status))
            except Exception as error:
                self._end(run, error)
                raise
            finally:
                self._starting.cancel()
                self._running.cancel()
        self._end(run, None)

    async def _watch(self, run: Run) -> None:
        with self._starting:
            await self._observer.watch(run)

    async def _stay_small(self) -> None:
        with self._running:
            await give_back()

    def _on_ready(self, run: Run) -> None:
        self._starting.cancel()
        self._ready = True
        if self._whole:
            _tune_collector()
        self._observer.ready(run, time.monotonic() - self._started_at)

    def _end(self, run: Run, error: Exception | None) -> None:
        now = time.monotonic()
        self.ending = Ending(
            error=error,
            signal=self._signal,
            ready=self._ready,
            drained=error is None and not run.undrained and self._signals < 2,
            undrained=run.undrained,
            seconds=now - self._signalled_at if self._signal is not None else 0.0,
            uptime=now - self._started_at,
        )
        self._observer.ended(run, self.ending)

    # Signals

    @contextmanager
    def _listening(self, run: Run) -> Generator[None]:
        """Handle signals, in the process's main thread; elsewhere nobody may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        token = trio.lowlevel.current_trio_token()
        root = trio.lowlevel.current_root_task()

        def handle(number: int, frame: FrameType | None) -> None:
            del frame
            self._on_signal(run, signal.Signals(number).name, token)

        def dump(number: int, frame: FrameType | None) -> None:
            del number, frame
            faulthandler.dump_traceback(all_threads=True)
            token.run_sync_soon(_dump_tasks, root)

        before = {number: signal.signal(number, handle) for number in SIGNALS}
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, dump)
        try:
            yield
        finally:
            for number, handler in before.items():
                # What ends already is not to be killed on its way, and with another exit code.
                signal.signal(number, signal.SIG_IGN if self._whole else handler)
            if not self._whole:
                self.deadline.disarm()

    def _on_signal(self, run: Run, name: str, token: trio.lowlevel.TrioToken) -> None:
        """Count a signal; runs inside the signal handler."""
        self._signals += 1
        if self._signals == 1:
            self._signal = name
            self._signalled_at = time.monotonic()
            self._bound(run, run.settings.drain_timeout + CLOSING_TIMEOUT_S)
            token.run_sync_soon(self._drain, run, name)
        elif self._signals == 2:
            self._bound(run, CANCEL_TIMEOUT_S)
            token.run_sync_soon(self._cancel, run)
        else:
            os.write(2, b"trickle: stopped at once by the third signal\n")
            os._exit(EXIT_STOPPED)

    def _bound(self, run: Run, seconds: float) -> None:
        self.deadline.arm(seconds, EXIT_STOPPED, lambda: self._last_words(run, seconds))

    def _drain(self, run: Run, name: str) -> None:
        self._observer.stopping(name)
        if run.committer is None:  # nothing has been done yet that would have to be committed
            run.cancel()
        else:
            run.stop()

    def _cancel(self, run: Run) -> None:
        logger.warning("second signal: events in hand are dropped, they run again")
        run.cancel()

    def _last_words(self, run: Run, seconds: float) -> str:
        """Say what hangs; runs in the deadline's thread, while nothing else may work."""
        lanes = list(run.undrained)
        if run.conductor is not None:
            lanes += [f"{at.agent}[{at.partition}]" for at in run.conductor.lanes()]
        hung = lane_words(self._app, lanes)
        who = f": {hung} did not end" if hung else ""
        return (
            f"stopped {seconds:g} s after the last signal, before the drain ended{who}"
            f"{_where_blocked()}; what was not committed runs again"
        )


class _Ready(trio.TaskStatus[Any]):
    """Passes ``started()`` on, and calls a function first."""

    def __init__(self, function: Callable[[], None], status: trio.TaskStatus[Any]) -> None:
        self._function = function
        self._status = status

    def started(self, value: object = None) -> None:
        self._function()
        self._status.started(value)


def lane_words(app: App, lanes: Iterable[str]) -> str:
    """Return lanes (``agent[partition]``) for a person: agent, partition, and topics of each."""
    words: list[str] = []
    for lane in dict.fromkeys(lanes):
        name, _, partition = lane.rstrip("]").rpartition("[")
        agent = app.agents.get(name)
        topics = " and ".join(topic.name for topic in agent.topics) if agent is not None else "?"
        words.append(f"agent {name!r} at partition {partition} of {topics}")
    return ", ".join(words)


def thread_words() -> str:
    """Say which threads keep the process from its end."""
    names = [
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    return f"left without waiting for the threads {', '.join(names)}" if names else ""


def _where_blocked() -> str:
    """Say where the main thread is, unless it waits in Trio's own loop."""
    # The one way to another thread's stack, documented for debuggers.
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    frame = frames.get(threading.main_thread().ident or 0)
    if frame is None:
        return ""
    stack = traceback.extract_stack(frame)
    if "/trio/_core/" in stack[-1].filename:
        return ""
    at = [line for line in stack if "site-packages" not in line.filename][-1]
    return f" (the event loop is held by {at.name} at {at.filename}:{at.lineno})"


def _tune_collector() -> None:
    """Take what has been made so far out of collection, and collect the young less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def _dump_tasks(root: trio.lowlevel.Task | None) -> None:
    """Write the tree of Trio's tasks to standard error, for SIGUSR1."""

    def write(task: trio.lowlevel.Task, depth: int) -> None:
        frames = [f"{frame.f_code.co_name}:{line}" for frame, line in task.iter_await_frames()]
        sys.stderr.write(f"{'  ' * depth}{task.name}  {' > '.join(frames[-3:])}\n")
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                write(child, depth + 1)

    if root is not None:
        write(root, 0)
        sys.stderr.flush()
