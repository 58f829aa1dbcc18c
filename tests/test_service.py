"""Services: an object that owns a nursery, its children, and the parent that starts it again."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.transport.helpers import sole_error
from trickle.exceptions import UsageError
from trickle.service import Restart, Service, ServiceStatistics, supervise
from trickle.tree import Tree


class Parent(Service):
    """Starts the children that it is given, in order."""

    def __init__(self, name: str, *children: Service) -> None:
        super().__init__(name)
        self.to_start = children

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        for child in self.to_start:
            await self.start(child)
        task_status.started()
        await trio.sleep_forever()


class Failing(Service):
    """Fails a while after it is ready, as often as it is told."""

    name = "failing"

    def __init__(self, times: int = 1, *, after: float = 1.0) -> None:
        super().__init__()
        self.times = times
        self.after = after
        self.begun: list[float] = []

    async def main(self, task_status: trio.TaskStatus[Any]) -> None:
        self.begun.append(trio.current_time())
        task_status.started("ready")
        await trio.sleep(self.after)
        if len(self.begun) <= self.times:
            raise LookupError(f"failure {len(self.begun)}")


def alive(name: str, *children: ServiceStatistics, tasks: int = 0, restarts: int = 0):  # noqa: ANN201
    return ServiceStatistics(
        name=name, running=True, restarts=restarts, tasks=tasks, children=children
    )


async def test_a_service_is_ready_when_start_returns_and_ends_with_its_scope() -> None:
    service = Service()
    assert service.name == "Service"
    assert service.statistics() == ServiceStatistics(
        name="Service", running=False, restarts=0, tasks=0
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        assert service.statistics() == alive("Service")
        nursery.cancel_scope.cancel()
    assert not service.statistics().running


async def test_children_are_ready_before_their_parent_and_end_with_it() -> None:
    inner, other = Service("inner"), Service("other")
    middle = Parent("middle", inner)
    parent = Parent("parent", middle, other)
    async with trio.open_nursery() as nursery:
        await nursery.start(parent.run)
        picture = alive("parent", alive("middle", alive("inner"), tasks=1), alive("other"), tasks=2)
        assert parent.statistics() == picture
        nursery.cancel_scope.cancel()
    assert [s.statistics().running for s in (parent, middle, inner, other)] == [False] * 4
    assert parent.statistics().tasks == 0


async def test_a_childs_error_ends_its_parent_and_its_siblings() -> None:
    sibling = Service("sibling")
    parent = Parent("parent", sibling, Failing(after=0))
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(parent.run)
            await trio.sleep_forever()
    error = sole_error(caught.value)
    assert isinstance(error, LookupError)
    assert str(error) == "failure 1"
    assert not sibling.statistics().running


async def test_an_error_before_it_is_ready_is_raised_by_start() -> None:
    class Hopeless(Service):
        async def main(self, task_status: trio.TaskStatus[Any]) -> None:
            raise LookupError("no")

    async with trio.open_nursery() as nursery:
        with pytest.raises(ExceptionGroup) as caught:
            await nursery.start(Hopeless().run)
    assert isinstance(sole_error(caught.value), LookupError)


async def test_it_runs_once_at_a_time_and_again_afterwards() -> None:
    child = Service("child")
    service = Parent("parent", child)
    with pytest.raises(RuntimeError) as caught:
        service.nursery  # noqa: B018 - it is the access that raises
    assert str(caught.value) == "the service 'parent' is not running: start it by its parent"
    for restarts in range(3):
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            assert service.nursery.child_tasks
            with pytest.raises(RuntimeError) as caught:
                await service.run()
            assert str(caught.value) == "the service 'parent' is running already"
            # A fresh run has fresh children: none is listed twice.
            picture = alive("parent", alive("child", restarts=restarts), tasks=1, restarts=restarts)
            assert service.statistics() == picture
            nursery.cancel_scope.cancel()


async def test_a_service_may_end_by_itself() -> None:
    service = Failing(times=0, after=0)
    await service.run()
    assert not service.statistics().running


async def test_a_failed_service_is_started_again_later_and_later(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    service = Failing(times=3)
    policy = Restart(times=3, within=60.0, backoff=0.5, backoff_max=1.5)
    with caplog.at_level(logging.WARNING, "trickle.service"):
        await supervise(service.run, policy, name="failing")
    # A second each, and pauses of 0.5, 1 and (not 2 but at most) 1.5 seconds between them.
    assert service.begun == [0.0, 1.5, 3.5, 6.0]
    assert service.statistics().restarts == 3
    assert [record.args[1:4] for record in caplog.records if isinstance(record.args, tuple)] == [
        (0.5, 1, 3),
        (1.0, 2, 3),
        (1.5, 3, 3),
    ]
    assert "in 0.5 s (1 of 3): LookupError('failure 1')" in caplog.text


async def test_one_failure_too_many_is_the_parents(autojump_clock: MockClock) -> None:
    service = Failing(times=99)
    with pytest.raises(ExceptionGroup) as caught:
        await supervise(service.run, Restart(times=2, within=60.0), name="failing")
    assert str(sole_error(caught.value)) == "failure 3"
    assert len(service.begun) == 3


async def test_failures_long_ago_are_forgotten(autojump_clock: MockClock) -> None:
    service = Failing(times=10, after=100.0)
    await supervise(service.run, Restart(times=1, within=60.0, backoff=1.0), name="failing")
    assert service.begun == [101.0 * n for n in range(11)]  # the pause stays the first one


async def test_readiness_is_told_once(autojump_clock: MockClock) -> None:
    """The parent hears the first ``started``; those of later runs go nowhere."""
    service = Failing(times=1)

    async def run(*, task_status: trio.TaskStatus[Any]) -> None:
        await supervise(service.run, Restart(), name="failing", task_status=task_status)

    async with trio.open_nursery() as nursery:
        assert await nursery.start(run) == "ready"
    assert len(service.begun) == 2


async def test_cancellation_is_no_failure(autojump_clock: MockClock) -> None:
    """Once while the service runs, once in the pause before it runs again."""
    for service, at in ((Service(), 5.0), (Failing(times=1), 1.2)):
        with trio.move_on_after(at) as scope:
            await supervise(service.run, Restart(backoff=10.0), name="service")
        assert scope.cancelled_caught
        assert service.statistics().restarts == 0
        assert not service.statistics().running


async def test_what_is_no_exception_passes_through() -> None:
    async def run(*, task_status: trio.TaskStatus[Any]) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        await supervise(run, Restart(), name="service")
    assert caught.value.code == 3


async def test_tasks_in_the_nursery_are_counted() -> None:
    service = Service()
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        service.nursery.start_soon(trio.sleep_forever)
        await wait_all_tasks_blocked()
        assert service.statistics().tasks == 1
        nursery.cancel_scope.cancel()


async def test_an_end_before_it_was_ready_names_the_service() -> None:
    class Hasty(Service):
        async def main(self, task_status: trio.TaskStatus[Any]) -> None:
            await trio.lowlevel.checkpoint()

    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(Hasty().run)
    error = sole_error(caught.value)
    assert isinstance(error, UsageError)
    assert "'Hasty' has ended before it was ready" in str(error)
    assert "task_status.started()" in str(error)


async def test_a_task_of_the_service_may_tell_that_it_is_ready() -> None:
    class Parted(Service):
        async def main(self, task_status: trio.TaskStatus[Any]) -> None:
            self.nursery.start_soon(self._later, task_status)

        async def _later(self, task_status: trio.TaskStatus[Any]) -> None:
            task_status.started()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(Parted().run)


async def test_a_service_that_is_never_ready_is_named(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent(Service):
        async def main(self, task_status: trio.TaskStatus[Any]) -> None:
            await trio.sleep_forever()

    tree = Tree(lambda: None, 5)
    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            await tree.start(nursery, Silent())
    assert caplog.text.count("the start has waited for Silent for 10 s") == 1
