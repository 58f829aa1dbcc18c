"""The one thread that writes: requests of this process, as many as wait, become one transaction.

A request is a function of a write transaction: it checks, then changes. It takes effect as a whole
or not at all: one that raises is answered with its error, and the transaction is run again without
it. So a function must have no effect outside the transaction (it may run more than once).

A synced commit costs about as much for one request as for hundreds (group commit), so requests
that come while one is under way wait, and go together in the next.

Until its transaction has begun, a request can be withdrawn (by cancellation, or as its time is
over); from then on it runs to its end, which is a matter of the disk alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import outcome
import trio

from trickle.exceptions import BrokerUnavailable, TransportError
from trickle.transport.embedded.environment import ENGINE_ERRORS, Environment, WriteTxn
from trickle.transport.embedded.gate import Gate
from trickle.utils.bridge import Bridge

__all__ = ["Writer"]

T = TypeVar("T")

logger = logging.getLogger("trickle.transport.embedded")

JOINED_BYTES_MAX = 64 << 20
"""No more than this is joined into one transaction (its pages are in memory until it commits)."""

_WAITING, _BEGUN, _DONE = range(3)


class _Request:
    __slots__ = ("change", "deadline", "done", "size", "state", "timeout")

    def __init__(
        self,
        change: Callable[[WriteTxn], Any],
        size: int,
        timeout: float,
        done: Callable[[outcome.Outcome[Any]], None],
    ) -> None:
        self.change = change
        self.size = size
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.done = done
        self.state = _WAITING


class Writer:
    """Runs requests on a bridge's thread; all methods without another word in Trio's thread."""

    def __init__(
        self,
        bridge: Bridge,
        environment: Environment,
        committed: Callable[[], None],
        upkeep: Callable[[Callable[[Callable[[WriteTxn], bool], bool], bool]], float | None],
    ) -> None:
        self._bridge = bridge
        self._environment = environment
        self._gate = Gate(environment.directory)
        self._committed = committed
        self._upkeep = upkeep
        self._waiting: deque[_Request] = deque()
        self._lock = threading.Lock()  # guards the states and the queue: both threads change them
        self._scheduled = False
        self._closed = False

    async def run(self, change: Callable[[WriteTxn], T], timeout: float, size: int = 0) -> T:
        """Run a change as a transaction, or as a part of one, and return its result.

        Args:
            timeout: seconds to wait for the turn to write.
            size: bytes that it writes, roughly.

        Raises:
            BrokerUnavailable: another process writes all that time; nothing was done.
            TransportError: nothing was done.
        """
        task = trio.lowlevel.current_task()
        request = self.submit(
            change, timeout, lambda result: trio.lowlevel.reschedule(task, result), size
        )

        def abort(_: Any) -> trio.lowlevel.Abort:
            if self._withdraw(request):
                return trio.lowlevel.Abort.SUCCEEDED
            return trio.lowlevel.Abort.FAILED

        # The thread keeps the deadline; the margin is for the case that it hangs before it looks.
        with trio.move_on_after(timeout + 1.0):
            result: T = await trio.lowlevel.wait_task_rescheduled(abort)
            return result
        raise self._unavailable(timeout)

    def submit(
        self,
        change: Callable[[WriteTxn], Any],
        timeout: float,
        done: Callable[[outcome.Outcome[Any]], None],
        size: int = 0,
    ) -> _Request:
        """Queue a request without a wait; ``done`` gets its outcome, in Trio's thread."""
        self._environment.check_process()
        if self._closed:
            raise trio.ClosedResourceError("the transport was closed")
        request = _Request(change, size, timeout, done)
        with self._lock:
            self._waiting.append(request)
            scheduled, self._scheduled = self._scheduled, True
        if not scheduled:
            self._bridge.post(self._work)
        return request

    async def call(self, fn: Callable[[], T]) -> T:
        """Run something on the thread, between transactions."""
        self._environment.check_process()
        return await self._bridge.call(fn)

    def keep_up(self) -> None:
        """Do a step of upkeep without a commit before it."""
        self._bridge.post(self._keep_up)

    def close(self) -> None:
        """Take no more requests."""
        self._closed = True

    def _withdraw(self, request: _Request) -> bool:
        with self._lock:
            if request.state != _WAITING:
                return False
            request.state = _DONE
            return True

    def _unavailable(self, timeout: float) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"the embedded log in {self._environment.directory} could not be written for "
            f"{timeout:g} s: process {self._gate.holder()} is inside a write. If it is stopped, "
            "continue or end it; the log is for one machine, with kafka:// for more"
        )

    # On the thread

    def _attempt(self, change: Callable[[WriteTxn], bool], default: bool) -> bool:
        """Run a change now if nobody else is writing; for upkeep, which can wait."""
        tries = iter((True,))
        if not self._enter(lambda: next(tries, False)):
            return default
        try:
            self._environment.check_directory()
            return self._environment.write(change)
        finally:
            self._gate.leave()

    def _work(self) -> None:
        """Serve all that waits; must not raise, or the thread would end."""
        try:
            while self._turn():
                pass
        except Exception as error:  # noqa: BLE001 - handed to all who wait
            with self._lock:
                self._scheduled = False
                waiting = list(self._waiting)
                self._waiting.clear()
            self._answer([(request, outcome.Error(error)) for request in waiting])
            return
        self._keep_up()

    def _enter(self, wanted: Callable[[], bool]) -> bool:
        try:
            return self._gate.enter(wanted)
        except OSError as error:
            self._environment.check_directory()  # the likely reason, and the better sentence
            raise TransportError(
                f"the embedded log in {self._environment.directory} cannot be written: {error}"
            ) from error

    def _keep_up(self) -> None:
        try:
            pause = self._upkeep(self._attempt)
        except (OSError, TransportError) as error:
            # The log works without it for now; what is damaged shows to whoever reads it.
            logger.warning("upkeep of the embedded log failed and is tried again: %s", error)
        else:
            if pause is not None:  # no commit may ever come, and others wait for its end
                self._bridge.later(pause, self._keep_up)

    def _wanted(self) -> bool:
        """Answer those whose time is over; tell whether anyone still waits."""
        now = time.monotonic()
        late: list[tuple[_Request, outcome.Outcome[Any]]] = []
        with self._lock:
            for request in list(self._waiting):
                if request.state == _DONE:
                    self._waiting.remove(request)
                elif request.deadline <= now:
                    self._waiting.remove(request)
                    request.state = _BEGUN
                    late.append((request, outcome.Error(self._unavailable(request.timeout))))
            wanted = bool(self._waiting)
        self._answer(late)
        return wanted

    def _turn(self) -> bool:
        """Run one transaction; tell whether to go on."""
        if not self._wanted() or not self._enter(self._wanted):
            with self._lock:
                self._scheduled = bool(self._waiting)
                return self._scheduled
        try:
            requests = self._take()
            results = self._transaction(requests)
        finally:
            self._gate.leave()
        self._answer(results)
        if any(isinstance(result, outcome.Value) for _, result in results):
            self._committed()  # after the answers: whoever else is told decides nothing about them
        return True

    def _take(self) -> list[_Request]:
        taken: list[_Request] = []
        size = 0
        with self._lock:
            while self._waiting and (not taken or size < JOINED_BYTES_MAX):
                request = self._waiting.popleft()
                if request.state == _WAITING:
                    request.state = _BEGUN
                    size += request.size
                    taken.append(request)
        return taken

    def _transaction(self, requests: list[_Request]) -> list[tuple[_Request, outcome.Outcome[Any]]]:
        answers: list[tuple[_Request, outcome.Outcome[Any]]] = []
        remaining = requests
        while remaining:
            failed: list[tuple[_Request, Exception]] = []

            def change(
                txn: WriteTxn,
                remaining: list[_Request] = remaining,
                failed: list[tuple[_Request, Exception]] = failed,
            ) -> list[Any]:
                results: list[Any] = []
                for request in remaining:
                    try:
                        results.append(request.change(txn))
                    except ENGINE_ERRORS:
                        raise  # nobody's own: the environment grows, or says what is wrong
                    except Exception as error:
                        failed.append((request, error))
                        raise
                return results

            try:
                self._environment.check_directory()
                results = self._environment.write(change)
            except Exception as error:  # noqa: BLE001 - each goes to whoever asked
                if not failed:
                    answers.extend((request, outcome.Error(error)) for request in remaining)
                    return answers
                culprit, reason = failed[-1]
                answers.append((culprit, outcome.Error(reason)))
                remaining = [request for request in remaining if request is not culprit]
            else:
                answers.extend(
                    (request, outcome.Value(result))
                    for request, result in zip(remaining, results, strict=True)
                )
                return answers
        return answers

    def _answer(self, answers: list[tuple[_Request, outcome.Outcome[Any]]]) -> None:
        if answers:
            self._bridge.to_trio(self._deliver, answers)

    def _deliver(self, answers: list[tuple[_Request, outcome.Outcome[Any]]]) -> None:
        for request, result in answers:
            if request.state != _DONE:
                request.state = _DONE
                request.done(result)
