"""Who is fenced by a twin ends; who is fenced by others goes on."""

from __future__ import annotations

from trickle.fences import FENCES_MAX, ONCE_S, OTHERS_OPEN_S, Fences

SESSION = 10.0


def test_to_be_fenced_once_is_no_sign_of_a_twin() -> None:
    """Whoever ends what a broker forgot fences all of the group, long after any assignment."""
    fences = Fences(SESSION)
    fences.assigned(0)
    assert fences.excused(1000)
    assert fences.excused(1000 + ONCE_S + 1)


def test_a_twin_fences_each_time() -> None:
    fences = Fences(SESSION)
    fences.assigned(0)
    assert fences.excused(1000)
    assert not fences.excused(1001)


def test_those_who_open_their_partitions_may_do_so_a_few_times() -> None:
    fences = Fences(SESSION)
    fences.assigned(0)
    assert [fences.excused(1 + n) for n in range(FENCES_MAX + 2)] == [
        *[True] * (FENCES_MAX + 1),
        False,
    ]
    fences.assigned(20)
    assert fences.excused(21)
    assert not fences.excused(21 + SESSION + OTHERS_OPEN_S)


def test_what_delays_others_gives_them_more_time() -> None:
    fences = Fences(SESSION)
    fences.assigned(0)
    assert fences.excused(1)
    fences.delayed(50)
    assert fences.excused(55)
