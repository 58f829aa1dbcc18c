"""The user's tasks and services, as children of a Run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from trickle.service import Restart, Service, ServiceStatistics, supervise
from trickle.utils.functions import awaited
from trickle.utils.groups import only_error

__all__ = ["TaskService", "UserService"]


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
            await awaited(self._function, what=self._label)
        except Exception as error:
            error.add_note(f"{self._label} failed")
            raise


class UserService(Service):
    """A service of the user's; where it has a policy, it is started again when it fails."""

    def __init__(self, service: Service, policy: Restart | None) -> None:
        super().__init__(service.name)
        self._service = service
        self._policy = policy

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        run, policy = self._service.run, self._policy
        try:
            if policy is None:
                await run(task_status=task_status)
            else:
                await supervise(run, policy, name=self.name, task_status=task_status)
        except Exception as error:
            # On the one error that there is: the group around it may be taken off on its way up.
            (only_error(error) or error).add_note(f"service {self.name!r} failed")
            raise

    def statistics(self) -> ServiceStatistics:
        return self._service.statistics()
