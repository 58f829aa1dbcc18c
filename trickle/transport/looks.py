"""Looking at topics where not every broker knows the same.

In a cluster the controller decides, and each broker learns of it some time later; one that has just
come back may be seconds behind. Whoever asks it is told that a topic does not exist, which was made
a moment ago, or long before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import trio

from trickle.transport.contract import Admin, TopicInfo

__all__ = ["find_topics"]

SPREAD_S = 5.0
PAUSE_S = 0.2


async def find_topics(admin: Admin, names: Collection[str]) -> Mapping[str, TopicInfo]:
    """Look until all of these topics are there, or for a few seconds; return those that are."""
    deadline = trio.current_time() + SPREAD_S
    while True:
        found = await admin.topics(names)
        if all(name in found for name in names) or trio.current_time() >= deadline:
            return found
        await trio.sleep(PAUSE_S)
