"""Short runs of the checker on the real code; long ones are ``nox -s soak``.

What a run found, with its seed and the directory of its logs, is in the test's output.
"""

from __future__ import annotations

import pytest

from tests.faults.__main__ import main

pytestmark = [pytest.mark.soak, pytest.mark.timeout(420)]

SMALL = ["--workers", "2", "--partitions", "4", "--keys", "500", "--rate", "300"]


def test_all_fail_points_once() -> None:
    """Killed between any two steps of commit, store and recovery, in a run for each order."""
    given = ["--seed", "1", "--seconds", "70", "--every", "8", "--faults", "failpoint"]
    assert main([*SMALL, *given]) == 0


def test_all_faults_mixed() -> None:
    """Whatever a minute of all faults does, the result is exact."""
    assert main(["--seed", "2", "--seconds", "60", "--rate", "400", "--keys", "1000"]) == 0


def test_at_least_once_loses_nothing() -> None:
    """Repeated, perhaps, but nothing missing, and no count too low."""
    given = ["--seed", "3", "--seconds", "30", "--guarantee", "at_least_once"]
    assert main([*SMALL, *given, "--faults", "kill,term,stop,failpoint"]) == 0
