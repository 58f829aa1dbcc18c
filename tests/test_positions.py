"""The positions in committed offsets' metadata, against a model that keeps each agent's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trickle.positions import Positions, read_positions
from trickle.transport.contract import CommittedOffset

AGENTS = ["quick", "slow", "ünïcode", "x" * 50]
moves = st.lists(st.dictionaries(st.sampled_from(AGENTS[:3]), st.integers(0, 50), min_size=1))


@given(moves)
def test_each_agent_finds_its_own_position_again(steps: list[dict[str, int]]) -> None:
    """All agents report at each commit, as lanes do; a restart reads what was written."""
    model = dict.fromkeys(AGENTS[:3], 100)
    positions = Positions(100)
    for step in steps:
        for agent, by in step.items():
            model[agent] += by
        positions = read_positions(positions.moved(model, "me", released=False).write())
        assert positions.offset == min(model.values())
        assert {agent: positions.of(agent) for agent in model} == model


def test_a_new_agent_starts_at_the_committed_offset() -> None:
    positions = Positions(10).moved({"a": 15, "b": 12}, "me", released=False)
    assert (positions.offset, positions.of("a"), positions.of("b")) == (12, 15, 12)
    assert positions.of("new") == 12


def test_an_unknown_agent_is_carried_and_holds_nothing_back() -> None:
    """Agent "gone" was at 30 when the program lost it; the others pass it."""
    positions = Positions(10).moved({"a": 10, "gone": 30}, "me", released=False)
    positions = positions.moved({"a": 20}, "me", released=False)
    assert (positions.offset, positions.of("gone")) == (20, 30)
    positions = positions.moved({"a": 40}, "me", released=False)
    assert positions == Positions(40, {}, "me", released=False)


def test_the_committer_is_named_until_it_releases() -> None:
    held = read_positions(Positions(5).moved({"a": 6}, "txn-1", released=False).write())
    freed = read_positions(held.moved({"a": 6}, "txn-1", released=True).write())
    assert (held.committer, held.released) == ("txn-1", False)
    assert (freed.committer, freed.released) == ("txn-1", True)


def test_metadata_of_another_making_counts_as_none() -> None:
    for metadata in ("", "{", "not json", '{"c": 5}', "[]", "\x00"):
        assert read_positions(CommittedOffset(7, metadata)) == Positions(7)
