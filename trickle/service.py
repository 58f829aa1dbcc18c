"""Service: an object that owns a nursery.

A parent starts it by ``await nursery.start(service.run)``; it is ready when that returns. Its
children live in its nursery and end with it. There is no flag for whether it runs and no stop
method: its parent's scope is its lifetime, and an error that leaves it is its parent's to handle.

:func:`supervise` is such a parent for services that may be started again: a restart is a fresh
``run`` of the same object.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from trickle.exceptions import UsageError
from trickle.utils.groups import only_error

__all__ = ["Restart", "Service", "ServiceStatistics", "supervise"]

logger = logging.getLogger("trickle.service")


class ServiceStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a service says of itself: a snapshot.

    Attributes:
        name: as in the tree of services.
        running: whether it has a nursery now.
        restarts: how often it was started again.
        tasks: tasks in its nursery, its own body not counted.
        children: the services that run inside it, in the order of their start.
    """

    name: str
    running: bool
    restarts: int
    tasks: int
    children: tuple[ServiceStatistics, ...] = ()


class Service:
    """Whatever can be started, has children, and ends with its nursery.

    Override :meth:`main`; call ``task_status.started()`` in it when the service is ready. Inside,
    ``await self.start(child)`` starts a child service and ``self.nursery.start_soon`` a task.
    """

    name: str = ""

    def __init__(self, name: str = "") -> None:
        self.name = name or self.name or type(self).__name__
        self._nursery: trio.Nursery | None = None
        self._children: list[Service] = []
        self._runs = 0

    @property
    def nursery(self) -> trio.Nursery:
        """The nursery of the current run.

        Raises:
            RuntimeError: the service is not running.
        """
        if self._nursery is None:
            raise RuntimeError(f"the service {self.name!r} is not running: start it by its parent")
        return self._nursery

    async def run(self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """Run from start to end: to be handed to a parent's ``nursery.start``.

        Raises:
            UsageError: it has ended, and has not told its parent that it was ready.
        """
        if self._nursery is not None:
            raise RuntimeError(f"the service {self.name!r} is running already")
        self._runs += 1
        self._children = []
        status = Readiness(task_status)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self.main(status)
        finally:
            self._nursery = None
        ended = not nursery.cancel_scope.cancel_called  # else it was told to
        if ended and not status.told and task_status is not trio.TASK_STATUS_IGNORED:
            raise UsageError(
                f"the service {self.name!r} has ended before it was ready: its main() must call "
                "task_status.started()"
            )

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        """Do the service's work; by default be ready and live until cancelled."""
        task_status.started()
        await trio.sleep_forever()

    async def start(self, child: Service) -> None:
        """Start a child service and wait until it is ready; its errors are this one's."""
        self._children.append(child)
        await self.nursery.start(child.run, name=child.name)

    def statistics(self) -> ServiceStatistics:
        """Return a frozen picture of the service and all below it."""
        nursery = self._nursery
        return ServiceStatistics(
            name=self.name,
            running=nursery is not None,
            restarts=max(0, self._runs - 1),
            tasks=len(nursery.child_tasks) if nursery is not None else 0,
            children=tuple(child.statistics() for child in self._children),
        )


class Readiness(trio.TaskStatus[Any]):
    """Passes the first ``started()`` on, and remembers it."""

    def __init__(self, status: trio.TaskStatus[Any]) -> None:
        self._status = status
        self.told = False

    def started(self, value: object = None) -> None:
        """Tell the parent."""
        if not self.told:
            self.told = True
            self._status.started(value)


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """How often a failed service is started again.

    Attributes:
        times: restarts allowed within ``within`` seconds; one more failure is the parent's.
        backoff: seconds before the first restart, doubled each time up to ``backoff_max``.
    """

    times: int = 3
    within: float = 60.0
    backoff: float = 0.5
    backoff_max: float = 30.0


async def supervise(
    run: Callable[..., Awaitable[None]],
    policy: Restart,
    *,
    name: str,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a service, and start it again when it fails, as its policy allows.

    An ``Exception`` counts as a failure; Cancelled and other exits pass through. The failure that
    exceeds the policy is raised.
    """
    failures: list[float] = []
    status = Readiness(task_status)
    while True:
        try:
            await run(task_status=status)
        except Exception as error:
            now = trio.current_time()
            failures = [*(at for at in failures if at > now - policy.within), now]
            if len(failures) > policy.times:
                raise
            pause = min(policy.backoff * 2 ** (len(failures) - 1), policy.backoff_max)
            logger.warning(
                "service %s failed and is started again in %g s (%d of %d): %r",
                name, pause, len(failures), policy.times, only_error(error) or error,
            )  # fmt: skip
            await trio.sleep(pause)
        else:
            return
