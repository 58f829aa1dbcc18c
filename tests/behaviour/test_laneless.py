"""Apps with timers and no agents: nobody has lanes, and commits fail all the same."""

from __future__ import annotations

from typing import cast

import pytest
from trio.testing import MockClock

import trickle
import trickle.testing
from trickle.exceptions import CommitFailed
from trickle.transport.memory import CommitFault

FAULTS = cast("list[CommitFault]", ["aborted", "applied", "lost"])


class Beating:
    """An app whose timer counts."""

    def __init__(self) -> None:
        self.app = trickle.App("app")
        self.topic = self.app.topic("ticks", value=int, partitions=1)
        self.ticked = 0

        @self.app.timer(1)
        async def beat() -> None:
            self.ticked += 1
            self.topic.send_nowait(self.ticked)

        del beat

    def ticks(self) -> list[int]:
        return list(range(1, self.ticked + 1))


@pytest.mark.parametrize("fault", FAULTS)
async def test_timers_without_agents_know_which_commits_have_happened(
    mock_clock: MockClock, fault: CommitFault
) -> None:
    beating = Beating()
    async with trickle.testing.run(beating.app) as t:
        await t.advance(1.9)
        for _ in range(3):
            t.broker.fail_commits(fault)
            await t.advance(2.1)
        assert [event.value for event in t.sent(beating.topic)] == beating.ticks()


@pytest.mark.parametrize("fault", FAULTS)
async def test_timers_without_agents_commit_at_last_what_fails_at_the_end(
    mock_clock: MockClock, fault: CommitFault
) -> None:
    """The commit that is under way at the stop fails."""
    beating = Beating()
    async with trickle.testing.run(beating.app) as t:
        await t.advance(1.9)
        t.broker.commit_delay = 0.5
        t.broker.fail_commits(fault)
        await t.advance(0.2)
    assert [event.value for event in t.sent(beating.topic)] == beating.ticks()


async def test_timers_without_agents_leave_nothing_uncommitted_in_silence(
    mock_clock: MockClock,
) -> None:
    """The broker is away when the Run is to end, and a commit has failed before."""
    beating = Beating()
    with pytest.raises(ExceptionGroup) as caught:
        async with trickle.testing.run(beating.app) as t:
            await t.advance(1.9)
            t.broker.unavailable = True
            await t.advance(5)
    assert caught.group_contains(CommitFailed, match="is not committed")
