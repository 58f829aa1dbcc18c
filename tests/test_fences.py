"""Who is fenced by a twin ends; who is fenced by others goes on."""

from __future__ import annotations

import pytest

from trickle.fences import FENCES_MAX, WINDOW_S, Fences


def test_to_be_fenced_a_few_times_is_no_sign_of_a_twin() -> None:
    """Each worker that ends what a broker forgot fences all of the group."""
    fences = Fences()
    fences.assigned()
    assert all(fences.excused(1000 + 2 * n) for n in range(FENCES_MAX))


@pytest.mark.parametrize("pause", [0.1, 1, 10])
def test_a_twin_never_stops(pause: float) -> None:
    fences = Fences()
    fences.assigned()
    excused = [fences.excused(1000 + pause * n) for n in range(FENCES_MAX + 2)]
    assert excused == [*[True] * FENCES_MAX, False, False]


def test_those_who_open_their_partitions_may_do_so_at_each_assignment() -> None:
    fences = Fences()
    for assignment in range(5):
        fences.assigned()
        assert all(fences.excused(assignment * 10 + n) for n in range(FENCES_MAX))


def test_to_end_again_and_again_what_is_forgotten_ends_nobody() -> None:
    """Each worker looks every 30 s."""
    fences = Fences()
    fences.assigned()
    assert all(fences.excused(number * 30.0) for number in range(100))


def test_what_is_long_past_is_forgotten() -> None:
    fences = Fences()
    fences.assigned()
    assert all(fences.excused(n * WINDOW_S / (FENCES_MAX - 1)) for n in range(100))
