"""The range assignment on its own; the groups' tests meet it in action."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trickle.utils.partitioning import range_assignment


def test_the_example_of_kafkas_documentation() -> None:
    # org.apache.kafka.clients.consumer.RangeAssignor: two topics of three partitions, two members.
    members = {"C0": ["t0", "t1"], "C1": ["t0", "t1"]}
    assert range_assignment(members, {"t0": 3, "t1": 3}) == {
        "C0": [("t0", 0), ("t0", 1), ("t1", 0), ("t1", 1)],
        "C1": [("t0", 2), ("t1", 2)],
    }


def test_more_members_than_partitions_and_topics_that_do_not_exist() -> None:
    members = {"b": ["t"], "a": ["t", "missing"], "c": ["t"], "d": []}
    assert range_assignment(members, {"t": 2, "unwanted": 4}) == {
        "a": [("t", 0)], "b": [("t", 1)], "c": [], "d": [],
    }  # fmt: skip


@given(
    names=st.sets(st.text(min_size=1, max_size=4), min_size=1, max_size=7),
    count=st.integers(0, 40),
)
def test_topics_of_one_count_are_cut_at_the_same_places(names: set[str], count: int) -> None:
    members = dict.fromkeys(names, ("one", "two"))
    for share in range_assignment(members, {"one": count, "two": count}).values():
        one, two = ([n for topic, n in share if topic == name] for name in ("one", "two"))
        assert one == two
        assert len(one) in {count // len(names), -(-count // len(names))}
