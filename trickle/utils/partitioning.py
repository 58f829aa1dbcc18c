"""Which member of a group gets which partitions: the range assignment, as Kafka's own assignor.

For each topic on its own, its partitions in order are cut into one run for each member that wants
the topic, members in the order of their names; the first ones get one more where it does not come
out even. So topics of equal partition counts are cut at the same places, and a member holds the
same partition numbers of all of them: what joins and regrouped streams rest on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

__all__ = ["range_assignment"]


def range_assignment(
    members: Mapping[str, Collection[str]], counts: Mapping[str, int]
) -> dict[str, list[tuple[str, int]]]:
    """Cut the topics' partitions into runs for the members.

    Args:
        members: for each member's name the topics that it wants.
        counts: for each topic its number of partitions; topics that are not in it do not exist.

    Returns:
        For each member (topic, partition) pairs, sorted; an empty list where it gets none.
    """
    assigned: dict[str, list[tuple[str, int]]] = {name: [] for name in members}
    for topic in sorted(counts):
        takers = sorted(name for name, topics in members.items() if topic in topics)
        if not takers:
            continue
        each, over = divmod(counts[topic], len(takers))
        first = 0
        for index, name in enumerate(takers):
            behind = first + each + (index < over)
            assigned[name] += [(topic, partition) for partition in range(first, behind)]
            first = behind
    return assigned
