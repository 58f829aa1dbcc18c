"""The positions in committed offsets' metadata, against a model that keeps each agent's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trickle.exceptions import DefinitionError
from trickle.positions import METADATA_BYTES_MAX, Positions, check_names, read_positions
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


def test_what_settled_beyond_travels_with_its_agent() -> None:
    beyond = {"a": ((12, 15), (17, 18)), "b": ((30, 31),)}
    positions = Positions(5).moved({"a": 10, "b": 20}, "me", released=False, beyond=beyond)
    found = read_positions(positions.write())
    assert found == positions
    assert found.beyond == beyond
    assert (found.ledger("b").position, found.ledger("b").ranges) == (20, ((30, 31),))
    assert found.moved({"a": 18, "b": 20}, "me", released=False).beyond == {}


def test_what_an_unknown_agent_settled_is_carried_while_it_lies_ahead() -> None:
    """Agent "gone" had settled 12 to 15 and 17 beyond 10; the others pass it bit by bit."""
    ranges = ((12, 15), (17, 18))
    positions = Positions(10, beyond={"gone": ranges})
    for at, position, left in [
        (10, 10, ranges), (11, 11, ranges), (12, 15, ((17, 18),)), (16, 16, ((17, 18),)),
        (17, 18, ()), (20, 20, ()),
    ]:  # fmt: skip
        positions = read_positions(positions.moved({"a": at}, "me", released=False).write())
        assert positions.offset == at
        assert (positions.of("gone"), positions.beyond.get("gone", ())) == (position, left)


@given(
    st.lists(st.sampled_from(AGENTS), unique=True, min_size=1),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), max_size=5),
)
def test_ranges_that_have_room_fit_into_the_metadata(
    agents: list[str], sharing: int, carried: list[tuple[int, int]]
) -> None:
    """All agents are as far as can be, and those that share the room fill it up."""
    ranges, end = list[tuple[int, int]](), 3
    for gap, run in carried:
        ranges.append((end + gap, end + gap + run))
        end += gap + run
    before = Positions(3, topic_id="t" * 32, beyond={"gone": tuple(ranges)} if ranges else {})
    names = agents[: max(1, sharing)]
    room = before.room(agents, names, "c" * 200)
    far = {name: (1 << 63) - 5 - at for at, name in enumerate(agents)}
    after = before.moved({**far, "lowest": 3}, "c" * 200, released=True)
    texts = ",".join(f'"{name}":"{"x" * room}"' for name in names)
    texts = f",{texts}" if carried else f',"l":{{{texts}}}'
    metadata = after.write().metadata + texts
    assert METADATA_BYTES_MAX - 200 < len(metadata.encode()) <= METADATA_BYTES_MAX


def test_the_committer_is_named_until_it_releases() -> None:
    held = read_positions(Positions(5).moved({"a": 6}, "txn-1", released=False).write())
    freed = read_positions(held.moved({"a": 6}, "txn-1", released=True).write())
    assert (held.committer, held.released) == ("txn-1", False)
    assert (freed.committer, freed.released) == ("txn-1", True)


def test_agents_whose_positions_have_no_room_are_named() -> None:
    """As many as have room, and one more."""
    names = [f"agent-{number:03}-of-a-large-program" for number in range(200)]
    most = next(n for n in range(200) if not _fits(names[: n + 1]))
    assert 50 < most < 150
    positions = Positions(0, dict.fromkeys(names[:most], 1), "c" * 100)
    assert len(positions.write().metadata) <= 4095
    with pytest.raises(DefinitionError, match=r"200 agents read one topic .* shorter names"):
        Positions(0, dict.fromkeys(names, 1), "c" * 100).write()


def _fits(names: list[str]) -> bool:
    try:
        check_names(names, "c" * 100)
    except DefinitionError:
        return False
    return True


def test_metadata_of_another_making_counts_as_none() -> None:
    for metadata in ("", "{", "not json", '{"c": 5}', "[]", "\x00"):
        assert read_positions(CommittedOffset(7, metadata)) == Positions(7)
