"""The tree below a Run: services in one nursery, each in a scope of its own, ended in order.

A service that fails does not pull the others down before they have drained: its error is kept, the
Run is told, and ends them one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import trio

from trickle.service import Readiness, Service, ServiceStatistics

__all__ = ["Tree"]

logger = logging.getLogger("trickle.run")

LONG_START_S = 10.0


class _Child:
    """A service, its scope, and its end."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.scope = trio.CancelScope()
        self.ended = trio.Event()


class Tree:
    """Services that were started one after the other, and are ended in the reverse order.

    Args:
        failed: called when one of them has failed.
        patience: seconds that each may take to end.

    Attributes:
        failures: the errors that ended services.
    """

    def __init__(self, failed: Callable[[], None], patience: float) -> None:
        self._failed = failed
        self._patience = patience
        self._children: list[_Child] = []
        self.failures: list[Exception] = []

    async def start(self, nursery: trio.Nursery, service: Service) -> None:
        """Start a service and wait until it is ready.

        Raises:
            Exception: it failed before it was ready.
        """
        child = _Child(service)
        self._children.append(child)
        nursery.start_soon(self._remind, waiting := trio.CancelScope(), service.name)
        try:
            await nursery.start(self._guard, child, name=service.name)
        finally:
            waiting.cancel()

    @staticmethod
    async def _remind(waiting: trio.CancelScope, name: str) -> None:
        with waiting:
            await trio.sleep(LONG_START_S)
            logger.warning(
                "the start has waited for %s for %g s: a service is ready when its main() calls "
                "task_status.started()", name, LONG_START_S,
            )  # fmt: skip

    async def _guard(self, child: _Child, task_status: trio.TaskStatus[Any]) -> None:
        status = Readiness(task_status)
        try:
            with child.scope:
                await child.service.run(task_status=status)
        except Exception as error:
            if not status.told:
                raise
            self.failures.append(error)
            self._failed()
        finally:
            child.ended.set()

    async def end_after(self, service: Service | None) -> None:
        """End what was started after a service; all, where that is None or was never started."""
        while self._children and self._children[-1].service is not service:
            await self._end(self._children.pop())

    async def _end(self, child: _Child) -> None:
        child.scope.cancel()
        with trio.move_on_after(self._patience):
            await child.ended.wait()
        if not child.ended.is_set():
            logger.error("%s resists its end (a shielded scope?)", child.service.name)

    @contextmanager
    def telling(self, app_id: str) -> Generator[None]:
        """Raise what ended services as one group, with what leaves the block besides.

        An error alone, as of a service that could not start, stays what it is.
        """
        others: list[Exception] = []
        try:
            yield
        except Exception as error:
            if not self.failures:
                raise
            others.append(error)
        if self.failures:
            raise ExceptionGroup(f"the app {app_id!r} failed", [*self.failures, *others])

    async def closing(self, call: Callable[[], Awaitable[None]]) -> None:
        """Make a last call on the way out; its error is kept like that of a service."""
        try:
            await call()
        except Exception as error:  # noqa: BLE001 - kept, and raised when all has ended
            if error not in self.failures:
                self.failures.append(error)

    def statistics(self) -> tuple[ServiceStatistics, ...]:
        """Return pictures of the services, in the order of their start."""
        return tuple(child.service.statistics() for child in self._children)
