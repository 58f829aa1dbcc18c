"""Which member of a group keeps which shards as a standby: the same choice on every member.

Pure: all members see the same group, so each computes the whole plan and does its own part of it.
Nobody coordinates, and nothing has to be told.

A standby is of use to the member that gets the partition next. Which one that is depends on who
leaves, and the range assignment tells it for each of them: so a member's *merit* at a place is the
number of members whose leaving would make it the owner. The plan takes the members of most merit,
and then levels: as long as one member keeps two more than another that could have one of them, the
one of least merit is moved. So the work is even, and within that the standbys are where they are
needed. (The range assignment moves more than what the leaving member held: with few replicas some
of what moves is cold.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import TypeAlias

from trickle.utils.partitioning import range_assignment

__all__ = ["Place", "plan_standbys"]

Place: TypeAlias = tuple[int, int]
"""A partition number among the topics of one partition count: (count, number)."""


def plan_standbys(
    owned: Mapping[str, Collection[Place]], counts: Collection[int], replicas: int
) -> dict[str, frozenset[Place]] | None:
    """Choose who keeps what.

    Args:
        owned: for each member's name the places that it is assigned.
        counts: the partition counts whose places have shards; other places are of no interest.
        replicas: how many standbys each place shall have; it gets fewer where members are few.

    Returns:
        For each member the places that it keeps; None where a place has no owner, or two: the
        group is being rebalanced, and what is seen of it is no ground for a choice.
    """
    places = [(count, number) for count in sorted(set(counts)) for number in range(count)]
    owners: dict[Place, str] = {}
    for member, held in owned.items():
        for place in held:
            if owners.setdefault(place, member) != member:
                return None
    if any(place not in owners for place in places):
        return None
    keepers = _Keepers(owners, sorted(owned), _merits(sorted(owned), counts))
    for place in places:
        keepers.fill(place, replicas)
    keepers.level()
    return {member: frozenset(kept) for member, kept in keepers.kept.items()}


def _merits(members: Collection[str], counts: Collection[int]) -> Counter[tuple[str, Place]]:
    """Count for each member and place whose leaving would make the one the other's owner."""
    sizes = {str(count): count for count in counts}
    merits: Counter[tuple[str, Place]] = Counter()
    for leaver in members:
        wishes = {member: list(sizes) for member in members if member != leaver}
        for member, places in range_assignment(wishes, sizes).items():
            merits.update((member, (int(count), number)) for count, number in places)
    return merits


class _Keepers:
    """The plan while it is made."""

    def __init__(
        self,
        owners: Mapping[Place, str],
        members: Collection[str],
        merits: Mapping[tuple[str, Place], int],
    ) -> None:
        self._owners = owners
        self._merits = merits
        self.kept: dict[str, set[Place]] = {member: set() for member in members}
        self._found: defaultdict[Place, set[str]] = defaultdict(set)

    def _may(self, member: str, place: Place) -> bool:
        return member != self._owners[place] and member not in self._found[place]

    def fill(self, place: Place, replicas: int) -> None:
        """Give a place its standbys."""
        able = [member for member in self.kept if self._may(member, place)]
        able.sort(key=lambda m: (-self._merits[m, place], len(self.kept[m]), m))
        for member in able[:replicas]:
            self._give(member, place)

    def _give(self, member: str, place: Place) -> None:
        self.kept[member].add(place)
        self._found[place].add(member)

    def level(self) -> None:
        """Move standbys until no single move would make the members more equal."""
        while self._move_one():
            pass

    def _move_one(self) -> bool:
        by_load = sorted(self.kept, key=lambda m: (len(self.kept[m]), m))
        for giver in reversed(by_load):
            for taker in by_load:
                if len(self.kept[giver]) < len(self.kept[taker]) + 2:
                    break
                free = [place for place in self.kept[giver] if self._may(taker, place)]
                if free:
                    self._move(giver, taker, free)
                    return True
        return False

    def _move(self, giver: str, taker: str, free: list[Place]) -> None:
        """Move the place at which the giver has the least over the taker."""
        merits = self._merits
        place = min(free, key=lambda p: (merits[giver, p] - merits[taker, p], p))
        self.kept[giver].remove(place)
        self._found[place].remove(giver)
        self._give(taker, place)
