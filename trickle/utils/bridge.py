"""The one way between Trio and threads.

A client library that blocks gets a thread of its own, which owns the client: whatever touches the
client runs there, as a call in the thread's queue. Trio's side awaits the call's result.

Two shapes of thread:

* without ``idle``, the thread sleeps until a call comes (a writer of LMDB transactions);
* with ``idle``, it runs the pending calls, then ``idle()`` once, for ever (a consumer's short
  polls). ``idle`` may run pending calls itself by :meth:`Bridge.run_pending`, which is how a
  rebalance callback, inside a poll, still serves the commands that it waits for.

A hop costs about 60 µs there and back (``run_sync_soon``, about 6 µs, one way), so hand over
batches. Threads are daemons: a client that hangs while it is closed cannot keep the process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import outcome
import trio

__all__ = ["Bridge", "open_bridge"]

T = TypeVar("T")


class _Call:
    """One call on its way through the queue."""

    __slots__ = ("abandoned", "args", "fn", "task")

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], task: Any) -> None:
        self.fn = fn
        self.args = args
        self.task = task  # None: nobody waits for the result
        self.abandoned = False


class Bridge:
    """One thread with a queue of calls, owned by an :func:`open_bridge` block."""

    def __init__(self, name: str, idle: Callable[[], None] | None) -> None:
        self._idle = idle
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._stopped = False
        self._token = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._error: BaseException | None = None
        self._later: tuple[float, Callable[[], object]] | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    # From Trio's thread

    async def call(self, fn: Callable[..., T], *args: Any) -> T:
        """Run ``fn(*args)`` on the thread and return its result or raise its error.

        Cancelled before the call has begun, it never runs; cancelled later, it runs to its end
        and the result is dropped: shield a call whose result must be known.

        Raises:
            trio.BrokenResourceError: the thread has ended.
        """
        if self._ended.is_set():
            raise trio.BrokenResourceError("the thread has ended") from self._error
        request = _Call(fn, args, trio.lowlevel.current_task())
        self._calls.put(request)

        def abort(_: Any) -> trio.lowlevel.Abort:
            request.abandoned = True
            return trio.lowlevel.Abort.SUCCEEDED

        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Run ``fn(*args)`` on the thread some time; its error, if any, ends the thread."""
        self._calls.put(_Call(fn, args, None))

    async def close(self, timeout: float) -> bool:
        """Let the thread end after the calls that wait; tell whether it did within the timeout."""
        self._calls.put(None)
        with trio.move_on_after(timeout, shield=True):
            await self._ended.wait()
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        """Wait until the thread has ended, and raise the error that ended it."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error

    # From the thread itself

    @property
    def stopped(self) -> bool:
        """Whether the thread has been told to end: a long ``idle`` looks at it."""
        return self._stopped

    def to_trio(self, fn: Callable[..., object], *args: Any) -> None:
        """Run ``fn(*args)`` in Trio's thread soon; nothing happens if Trio has ended."""
        try:
            self._token.run_sync_soon(fn, *args)
        except trio.RunFinishedError:
            self._stopped = True

    def run_pending(self, timeout: float = 0.0) -> None:
        """Run the calls that wait; with a timeout, first wait so many seconds for one."""
        try:
            request = self._calls.get(timeout=timeout) if timeout else self._calls.get_nowait()
            while True:
                self._run(request)
                request = self._calls.get_nowait()
        except queue.Empty:
            return

    def later(self, seconds: float, fn: Callable[[], object]) -> None:
        """Run ``fn()`` on a thread without ``idle`` in so many seconds, where no call waits then.

        There is one at a time: a new one takes the place of the old. None runs after the end.
        """
        self._later = (time.monotonic() + seconds, fn)

    def _next(self) -> None:
        """Wait for a call, or for what has been left for later, and run it."""
        if self._later is None:
            self._run(self._calls.get())
            return
        due, fn = self._later
        try:
            request = self._calls.get(timeout=max(due - time.monotonic(), 0.0))
        except queue.Empty:
            self._later = None
            fn()
        else:
            self._run(request)

    def _run(self, request: _Call | None) -> None:
        if request is None:
            self._stopped = True
            return
        if request.abandoned:
            return
        if request.task is None:
            request.fn(*request.args)
            return
        result = outcome.capture(request.fn, *request.args)
        self.to_trio(self._deliver, request, result)

    @staticmethod
    def _deliver(request: _Call, result: outcome.Outcome[Any]) -> None:
        if not request.abandoned:
            request.abandoned = True
            trio.lowlevel.reschedule(request.task, result)

    def _main(self) -> None:
        try:
            while not self._stopped:
                if self._idle is None:
                    self._next()
                else:
                    self.run_pending()
                    if not self._stopped:
                        self._idle()
        except BaseException as error:  # noqa: BLE001 - carried over to whoever waits in Trio
            self._error = error
        self.to_trio(self._end)

    def _end(self) -> None:
        self._ended.set()
        broken = trio.BrokenResourceError("the thread has ended")
        broken.__cause__ = self._error
        while True:
            try:
                request = self._calls.get_nowait()
            except queue.Empty:
                return
            if request is not None and request.task is not None:
                self._deliver(request, outcome.Error(broken))

    def start(self) -> None:
        """Start the thread; :func:`open_bridge` does."""
        self._thread.start()


@asynccontextmanager
async def open_bridge(
    name: str, *, idle: Callable[[], None] | None = None, close_timeout: float = 5.0
) -> AsyncGenerator[Bridge, None]:
    """Open a thread with its queue; at the end it finishes what is queued, within the timeout."""
    bridge = Bridge(name, idle)
    bridge.start()
    try:
        yield bridge
    finally:
        await bridge.close(close_timeout)
