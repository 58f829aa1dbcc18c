"""Commands at the broker, without a Run: they join no group and leave no trace there."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from trickle.cli.wire import PLAIN, Wire
from trickle.config import Settings
from trickle.exceptions import TopicError, UsageError
from trickle.topics import Topic
from trickle.transport import open_transport
from trickle.transport.contract import Admin, TopicInfo, Transport, TransportOptions
from trickle.utils.names import check_name
from trickle.utils.suggest import did_you_mean

if TYPE_CHECKING:
    from trickle.app import App

__all__ = [
    "check_partition",
    "check_sendable",
    "find_topic",
    "open_broker",
    "require_topic",
    "wires",
]


def open_broker(settings: Settings) -> AbstractAsyncContextManager[Transport]:
    """Open the app's broker."""
    options = TransportOptions(client=settings.client, request_timeout=settings.broker_timeout)
    return open_transport(settings.broker, options)


def find_topic(app: App, name: str, *, agents: bool = False) -> Topic[Any, Any] | None:
    """Return the app's topic of a name, None where the app defines none.

    Args:
        agents: the name may be an agent's: then the (first) topic is meant in which what it reads
            begins, so that all is regrouped that is to be.

    Raises:
        ConfigurationError: the name cannot be a topic's.
    """
    check_name(name, what="TOPIC")
    topic = app.topics.get(name)
    if topic is None and agents and name in app.agents:
        source = app.agents[name].source
        topic = source.topics[0]
        for repartition in reversed(source.repartitions):
            if repartition.target is topic:
                topic = repartition.source.topics[0]
    return topic


def check_sendable(app: App, name: str) -> None:
    """See that a topic is not one that only the app itself may write.

    Raises:
        UsageError: it is a changelog of the app's.
    """
    for table in app.tables.values():
        if name == table.changelog:
            raise UsageError(
                f"TOPIC {name!r} is the changelog of table {table.name!r}: only the table itself "
                "writes it, and any other record would break each recovery; send an event to an "
                "agent that writes the table"
            )


def wires(topic: Topic[Any, Any] | None) -> tuple[Wire, Wire]:
    """Return how a topic's keys and values are written on the command line."""
    if topic is None:
        return PLAIN, PLAIN
    return Wire(topic.key_type, topic.key_codec), Wire(topic.value_type, topic.value_codec)


async def require_topic(admin: Admin, name: str, app: App) -> TopicInfo:
    """Return a topic as it is on the broker.

    Raises:
        TopicError: it does not exist.
    """
    found = await admin.topics([name])
    if name not in found and name in app.topics:
        raise TopicError(
            f"topic {name!r} is not on the broker yet: a worker declares it as it starts"
        )
    if name not in found:
        known = ", ".join(sorted(app.topics)) or "none"
        raise TopicError(
            f"topic {name!r} does not exist on the broker{did_you_mean(name, app.topics)}: "
            f"the topics of app {app.id!r} are {known}"
        )
    return found[name]


def check_partition(topic: str, count: int, partition: int | None) -> None:
    """Check an argument ``--partition`` against a topic's partition count.

    Raises:
        UsageError: the topic has no such partition.
    """
    if partition is not None and not 0 <= partition < count:
        raise UsageError(
            f"--partition {partition}: topic {topic!r} has the partitions 0 to {count - 1}"
        )
