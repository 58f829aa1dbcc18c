"""Topics that take nothing any more, on a real Apache Kafka: no event pays for it."""

from __future__ import annotations

import uuid
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from confluent_kafka import admin as client_admin

import trickle
from tests.kafka_broker import KafkaBroker
from trickle.run import Run, Surroundings, open_run
from trickle.stores.memory import MemoryDisk, MemoryStore
from trickle.transport import TransportOptions, open_transport
from trickle.transport.contract import TopicSpec, Transport

pytestmark = pytest.mark.kafka

LIMIT = 60.0

admin: Any = client_admin  # its names are documented at this place, and declared at another


class Rules:
    """Who may write to one topic."""

    def __init__(self, broker: KafkaBroker, topic: str) -> None:
        self._client = admin.AdminClient({"bootstrap.servers": broker.address})
        self._topic = topic

    def forbid(self, denied: str) -> None:
        names = ["READ", "DESCRIBE", "DESCRIBE_CONFIGS"]
        rules = [self._rule(name, admin.AclPermissionType.ALLOW) for name in names]
        rules.append(self._rule(denied, admin.AclPermissionType.DENY))
        for future in self._client.create_acls(rules).values():
            future.result(10)

    def allow(self) -> None:
        every = [*self._place, None, None, admin.AclOperation.ANY, admin.AclPermissionType.ANY]
        for future in self._client.delete_acls([admin.AclBindingFilter(*every)]).values():
            future.result(10)

    @property
    def _place(self) -> list[object]:
        return [admin.ResourceType.TOPIC, self._topic, admin.ResourcePatternType.LITERAL]

    def _rule(self, operation: str, permission: object) -> object:
        what = getattr(admin.AclOperation, operation)
        return admin.AclBinding(*self._place, "User:ANONYMOUS", "*", what, permission)


class Scene:
    """An app that counts and echoes, and skips what fails."""

    def __init__(self, broker: KafkaBroker, guarantee: str) -> None:
        self.name = f"own-{uuid.uuid4().hex[:8]}"
        self.app = trickle.App(self.name)
        self.source = self.app.topic(f"{self.name}-in", value=int, partitions=1)
        self.out = self.app.topic(f"{self.name}-out", value=int, partitions=1)
        counts = self.app.table("counts", key=str, value=int, default=int)

        @self.app.agent(self.source, on_error=trickle.Skip())
        async def count(stream: trickle.Stream[int]) -> None:
            async for value in stream:
                counts[str(value % 3)] += 1
                await self.out.send(value)

        del count
        self.changelog = f"{self.name}-counts-changelog"
        self._resolved = self.app.resolve(
            broker=broker.url, web=False, store="memory://", broker_timeout=8,
            processing_guarantee=guarantee,
        )  # fmt: skip
        disk = MemoryDisk()
        self._surroundings = Surroundings(store=lambda: MemoryStore(disk), name="worker")

    def open(self) -> AbstractAsyncContextManager[Run]:
        return open_run(self.app.definitions(), self._resolved, surroundings=self._surroundings)

    async def committed(self, transport: Transport) -> int:
        at = trickle.TopicPartition(self.source.name, 0)
        found = (await transport.admin.committed(self.name, [at], stable=False))[at]
        return 0 if found is None else found.offset

    async def reached(self, transport: Transport, offset: int) -> None:
        while await self.committed(transport) < offset:  # noqa: ASYNC110
            await trio.sleep(0.1)

    async def echoed(self, transport: Transport) -> list[int]:
        place = trickle.TopicPartition(self.out.name, 0)
        high = (await transport.admin.watermarks([place]))[place].high
        values: list[int] = []
        async with transport.reader({place: 0}) as reader:
            while reader.positions()[place] < high:
                for batch in await reader.fetch():
                    values += [int(value or b"") for value in batch.values()]
        return values


async def lose_and_mend(
    broker: KafkaBroker, transport: Transport, guarantee: str, what: str
) -> None:
    """Take a topic from an app that runs, see it end, and give the topic back."""
    scene = Scene(broker, guarantee)
    topic = scene.out.name if "sink" in what else scene.changelog
    rules = Rules(broker, topic)
    with pytest.raises((trickle.TopicError, ExceptionGroup)) as caught:
        async with scene.open():
            for value in range(10):
                await scene.source.send(value)
            await scene.reached(transport, 10)
            if "forbidden" in what:
                await trio.to_thread.run_sync(rules.forbid, "ALL" if "to see" in what else "WRITE")
            else:
                await transport.admin.delete([topic])
            if "anew" in what:
                spec = TopicSpec(name=topic, partitions=1, compacting=True)
                await transport.admin.declare([spec])
            for value in range(10, 20):
                await scene.source.send(value)
            await trio.sleep_forever()
    assert topic in repr(caught.value), what
    place = await scene.committed(transport)
    await trio.to_thread.run_sync(rules.allow)
    if what != "sink deleted":
        assert set(range(place)) <= set(await scene.echoed(transport))

    async with scene.open():
        await scene.reached(transport, 20)
    found = await scene.echoed(transport)
    if what == "sink deleted":  # with what was in it
        assert place == 10
        found = [*range(10), *found]
    assert set(found) == set(range(20)), what
    if guarantee == "exactly_once":
        assert found == list(range(20)), what


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
async def test_no_event_is_blamed_for_a_topic_that_takes_nothing(guarantee: str) -> None:
    """Six apps at once, as each takes its time to be sure."""
    properties: dict[str, str | bool] = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": True,
    }
    with KafkaBroker(properties) as broker, trio.fail_after(LIMIT):
        async with (
            open_transport(broker.url, TransportOptions()) as transport,
            trio.open_nursery() as nursery,
        ):
            for what in (
                "changelog deleted", "changelog made anew", "changelog forbidden", "sink deleted",
                "sink forbidden", "sink forbidden to see",
            ):  # fmt: skip
                nursery.start_soon(lose_and_mend, broker, transport, guarantee, what)
