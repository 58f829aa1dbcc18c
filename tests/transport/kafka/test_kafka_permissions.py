"""A broker that does not allow everything: what is not essential goes on without."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from confluent_kafka import admin

import trickle
from tests.kafka_broker import KafkaBroker
from tests.transport.helpers import LIMIT, declared, produce, read_all, transaction, unique
from trickle.transport import open_transport
from trickle.transport.contract import CommittedOffset, Mark, TransportOptions
from trickle.types import TopicPartition

pytestmark = pytest.mark.kafka

AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": True,
}
acls: Any = admin


def forbid(broker: KafkaBroker, kind: str, name: str, operation: str = "ALL") -> None:
    """Forbid everybody an operation, or all, on topics or groups that begin so."""
    client: Any = acls.AdminClient({"bootstrap.servers": broker.address})
    pattern = acls.ResourcePatternType.PREFIXED
    rule = acls.AclBinding(
        acls.ResourceType[kind], name, pattern, "User:*", "*",
        acls.AclOperation[operation], acls.AclPermissionType.DENY,
    )  # fmt: skip
    for future in client.create_acls([rule]).values():
        future.result(LIMIT)


@pytest.mark.parametrize("kind", ["GROUP", "TOPIC"])
async def test_whether_commits_may_be_marked_is_told_and_costs_nothing(kind: str) -> None:
    with KafkaBroker(AUTHORIZER) as broker:
        options = TransportOptions(request_timeout=LIMIT)
        async with open_transport(broker.url, options) as transport:
            topic, written, name = (
                await declared(transport),
                await declared(transport),
                unique("id"),
            )
            mark = Mark(name, TopicPartition(topic, 0), CommittedOffset(1, "mark"))
            with trio.fail_after(LIMIT):
                async with transaction(transport, name, unique("group")) as producer:
                    assert await producer.may_mark(mark)
                    denied = name if kind == "GROUP" else topic
                    await trio.to_thread.run_sync(forbid, broker, kind, denied)
                    assert not await producer.may_mark(mark)
                    await produce(producer, written, [b"one"])
                    await producer.commit({}, None)
                records = (await read_all(transport, written))[0]
            assert [record.value for record in records] == [b"one"]


async def test_timers_go_on_where_commits_cannot_be_marked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with KafkaBroker(AUTHORIZER) as broker:
        app = trickle.App(unique("app"), broker=broker.url, commit_interval=0.1)
        topic = app.topic(unique("ticks"), value=int, partitions=1)
        ticked, enough = 0, trio.Event()

        @app.timer(0.1)
        async def beat() -> None:
            nonlocal ticked
            ticked += 1
            topic.send_nowait(ticked)
            if ticked == 20:
                enough.set()

        del beat
        await trio.to_thread.run_sync(forbid, broker, "GROUP", f"{app.id}-")
        with trio.fail_after(2 * LIMIT):
            async with app.run():
                await enough.wait()
            async with open_transport(broker.url, TransportOptions()) as transport:
                records = (await read_all(transport, topic.name))[0]
        assert [int(record.value or b"") for record in records] == list(range(1, ticked + 1))
        told = [record.getMessage() for record in caplog.records]
        assert len([text for text in told if "cannot be marked" in text]) == 1
        assert not any("commit failed" in text for text in told)


async def test_what_was_left_open_is_aborted_also_where_some_topics_may_not_be_written() -> None:
    """Sources, for one: as long as one of them is asked for, the coordinator hears of none."""
    with KafkaBroker(AUTHORIZER) as broker, trio.fail_after(2 * LIMIT):
        async with open_transport(broker.url, TransportOptions()) as transport:
            source, written, more = [await declared(transport, 1) for _ in range(3)]
            places = [TopicPartition(name, 0) for name in (source, written, more)]
            name, group = unique("id"), unique("group")
            await trio.to_thread.run_sync(forbid, broker, "TOPIC", source, "WRITE")
            await transport.admin.fence(name, groups=[group], places=places)
            marks = await transport.admin.watermarks(places[1:])
            records = [await read_all(transport, name) for name in (written, more)]
        assert all(marks[at].high for at in places[1:])  # markers, and no record
        assert records == [{0: []}, {0: []}]
