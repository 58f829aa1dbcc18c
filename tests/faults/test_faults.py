"""Runs of the checker: short ones on the real code with every change, long ones by ``nox -s soak``.

What a run found, with its seed and the directory of its logs, is in the test's output. The plan is
the same each time; what it meets is not, for workers and broker keep no time.
"""

from __future__ import annotations

import pytest

from tests.faults import planted
from tests.faults.__main__ import main

pytestmark = pytest.mark.timeout(420)

SMALL = ["--workers", "2", "--partitions", "4", "--keys", "500", "--rate", "300"]
THREE = ["--workers", "3", "--partitions", "8", "--keys", "1000", "--rate", "300"]


@pytest.mark.kafka
def test_a_short_run_of_mixed_faults_is_exact() -> None:
    """Workers, connections and the broker itself are hit, a fault every four seconds."""
    assert main([*THREE, "--seed", "2", "--seconds", "45", "--every", "4"]) == 0


@pytest.mark.kafka
def test_a_short_run_at_least_once_loses_nothing() -> None:
    """Repeated, perhaps, but nothing missing, and no count too low."""
    given = ["--seed", "3", "--seconds", "25", "--every", "4", "--guarantee", "at_least_once"]
    assert main([*SMALL, *given, "--faults", "kill,term,failpoint,cut"]) == 0


@pytest.mark.kafka
def test_what_a_stopped_worker_writes_late_does_not_count() -> None:
    """Stopped for longer than its session, with changelog records on their way."""
    given = ["--seed", "5", "--seconds", "45", "--every", "4", "--guarantee", "at_least_once"]
    assert main([*THREE, *given, "--faults", "stop,kill,term"]) == 0


@pytest.mark.soak
def test_all_fail_points_once() -> None:
    """Killed between any two steps of commit, store and recovery, in a run for each order."""
    given = ["--seed", "1", "--seconds", "70", "--every", "8", "--faults", "failpoint"]
    assert main([*SMALL, *given]) == 0


@pytest.mark.soak
@pytest.mark.parametrize("seed", [11, 12, 13])
@pytest.mark.parametrize(
    "how",
    [
        ["--guarantee", "exactly_once"],
        ["--guarantee", "at_least_once"],
        ["--shared"],
        ["--protocol", "consumer"],
    ],
    ids=["exactly-once", "at-least-once", "one-directory", "kip-848"],
)
def test_all_faults_mixed(seed: int, how: list[str]) -> None:
    """Whatever two minutes of all faults do, the result is what the guarantee says."""
    assert main([*THREE, "--seed", str(seed), "--seconds", "120", *how]) == 0


@pytest.mark.soak
def test_three_brokers_that_lose_their_leaders() -> None:
    """One of three brokers is killed, stopped or cut off, again and again: leaders move."""
    given = ["--seed", "23", "--seconds", "90", "--every", "6", "--brokers", "3"]
    assert main([*THREE, *given, "--faults", "broker,cut,blackhole,kill,term"]) == 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_half_an_hour_of_faults_and_no_leak(capsys: pytest.CaptureFixture[str]) -> None:
    """A fault every five seconds; one worker is spared, and its memory does not grow."""
    given = ["--seed", "21", "--seconds", "1800", "--keys", "20000", "--rate", "300", "--spare"]
    with capsys.disabled():
        assert main(given) == 0


@pytest.mark.soak
def test_a_killed_worker_is_replaced_in_time() -> None:
    """All partitions work again within session timeout (6 s), drain deadline (2 s) and 3 s."""
    given = ["--seed", "22", "--seconds", "120", "--every", "20", "--faults", "kill"]
    assert main([*THREE, *given, "--takeover", "11"]) == 0


@pytest.mark.soak
@pytest.mark.parametrize("name", planted.BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    """The checker finds what it is there for."""
    assert planted.main([name]) == 0
