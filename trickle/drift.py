"""Topics that change under an app that runs: seen, and named."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from trickle.exceptions import TopicError
from trickle.transport.contract import Admin, TopicInfo
from trickle.transport.looks import find_topics

__all__ = ["check_topics"]


async def check_topics(
    admin: Admin,
    before: Mapping[str, TopicInfo],
    consumed: Collection[str],
    changelogs: Collection[str],
) -> None:
    """Compare topics with what they were when the lanes' layout was made.

    A changelog that has grown does no harm before the next start, which names it.

    Raises:
        TopicError: one is gone, was made anew, or has grown.
        BrokerUnavailable: no answer in time.
    """
    found = await find_topics(admin, {*consumed, *changelogs})
    for name in consumed:
        _check_consumed(before[name], found.get(name))
    for name in sorted(changelogs):
        _check_changelog(before[name], found.get(name))


def _check_consumed(before: TopicInfo, now: TopicInfo | None) -> None:
    name = before.name
    if now is None:
        raise TopicError(
            f"topic {name!r} was deleted while it was read: nothing of the app's state "
            "was; create the topic again, or take it out of the app"
        )
    if now.topic_id != before.topic_id:
        raise TopicError(
            f"topic {name!r} was deleted and created again while it was read: its offsets "
            "mean other records now; out_of_range= says where to begin in the new one"
        )
    if now.partitions != before.partitions:
        raise TopicError(
            f"topic {name!r} has grown from {before.partitions} to {now.partitions} "
            "partitions: start the workers again, so that none of them is left out"
        )


def _check_changelog(before: TopicInfo, now: TopicInfo | None) -> None:
    if now is not None and now.topic_id == before.topic_id:
        return
    what = "deleted" if now is None else "deleted and created again"
    raise TopicError(
        f"changelog {before.name!r} was {what} while the app ran: what its table holds is now "
        "in the data directories of the workers alone; keep a copy of them before the next "
        "start, which begins the table with what the changelog holds by then"
    )
