"""Who keeps which shards: alike for all, never the owner, even, and where it is needed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from trickle.tables.standby_plan import Place, plan_standbys
from trickle.utils.partitioning import range_assignment

COUNTS = st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True)


def ranges(members: list[str], counts: list[int]) -> dict[str, list[Place]]:
    sizes = {str(count): count for count in counts}
    assigned = range_assignment({member: list(sizes) for member in members}, sizes)
    return {m: [(int(count), number) for count, number in held] for m, held in assigned.items()}


@st.composite
def groups(draw: st.DrawFn) -> tuple[dict[str, list[Place]], list[int]]:
    """Members and what they own: by ranges, or anyhow."""
    counts = draw(COUNTS)
    members = [f"m{number}" for number in range(draw(st.integers(1, 6)))]
    if draw(st.booleans()):
        return ranges(members, counts), counts
    owned: dict[str, list[Place]] = {member: [] for member in members}
    for count in counts:
        for number in range(count):
            owned[draw(st.sampled_from(members))].append((count, number))
    return owned, counts


@given(groups(), st.integers(0, 4), st.randoms(use_true_random=False))
def test_the_plan(
    group: tuple[dict[str, list[Place]], list[int]], replicas: int, dice: random.Random
) -> None:
    owned, counts = group
    plan = plan_standbys(owned, counts, replicas)
    assert plan is not None
    assert set(plan) == set(owned)
    # Each place has its standbys, as many as there are others to keep it, none on its owner.
    for member, held in owned.items():
        assert not plan[member] & set(held)
        for place in held:
            keepers = [m for m, kept in plan.items() if place in kept]
            assert len(keepers) == min(replicas, len(owned) - 1)
    # As even as moving any one standby could make it.
    for giver in plan:
        for taker in plan:
            if len(plan[giver]) >= len(plan[taker]) + 2:
                assert all(p in owned[taker] or p in plan[taker] for p in plan[giver])
    # The same on all, in whatever order each of them sees the group; and nothing changes by itself.
    shuffled = list(owned.items())
    dice.shuffle(shuffled)
    assert plan_standbys(dict(shuffled), counts[::-1], replicas) == plan


def test_a_group_in_a_rebalance_is_no_ground_for_a_plan() -> None:
    assert plan_standbys({}, [2], 1) is None
    assert plan_standbys({"a": [(2, 0)], "b": []}, [2], 1) is None
    assert plan_standbys({"a": [(2, 0), (2, 1)], "b": [(2, 1)]}, [2], 1) is None
    assert plan_standbys({}, [], 1) == {}


def test_other_places_are_of_no_interest() -> None:
    plan = plan_standbys({"a": [(2, 0), (3, 0)], "b": [(2, 1)]}, [2], 1)
    assert plan == {"a": frozenset({(2, 1)}), "b": frozenset({(2, 0)})}


def test_a_standby_is_where_the_partition_goes_next() -> None:
    """Of 12 partitions on 3 members: when one leaves, most of what moves finds a standby."""
    members = ["a", "b", "c"]
    owned = ranges(members, [12])
    plan = plan_standbys(owned, [12], 1)
    assert plan is not None
    assert sorted(len(kept) for kept in plan.values()) == [4, 4, 4]
    warm = cold = 0
    for leaver in members:
        after = ranges([m for m in members if m != leaver], [12])
        for member, held in after.items():
            moved = set(held) - set(owned[member])
            warm += len(moved & plan[member])
            cold += len(moved - plan[member])
    assert (warm, cold) == (12, 4)
    plan = plan_standbys(owned, [12], 2)
    assert plan is not None
    assert all(len(kept) == 8 for kept in plan.values())
