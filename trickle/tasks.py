"""The user's tasks and services, as children of a Run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from trickle.service import Restart, Service, ServiceStatistics, supervise

__all__ = ["SupervisedService", "TaskService"]


class TaskService(Service):
    """A function of the user's that runs once; it may end, or go on until the Run stops."""

    def __init__(self, function: Callable[[], Awaitable[None]]) -> None:
        name = str(getattr(function, "__name__", "task"))
        super().__init__(f"Task {name}")
        self._label = f"task {name!r}"
        self._function = function

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started()
        try:
            await self._function()
        except Exception as error:
            error.add_note(f"{self._label} failed")
            raise


class SupervisedService(Service):
    """A service of the user's that is started again when it fails, as its policy allows."""

    def __init__(self, service: Service, policy: Restart) -> None:
        super().__init__(service.name)
        self._service = service
        self._policy = policy

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        await supervise(self._service.run, self._policy, name=self.name, task_status=task_status)

    def statistics(self) -> ServiceStatistics:
        return self._service.statistics()
