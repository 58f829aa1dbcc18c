"""Changelogs that take nothing any more, on a real Apache Kafka: no event pays for it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
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
from trickle.transport.contract import TopicSpec

pytestmark = pytest.mark.kafka

LIMIT = 60.0

admin: Any = client_admin  # its names are documented at this place, and declared at another


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaBroker]:
    """A broker that takes access rules."""
    properties: dict[str, str | bool] = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": True,
    }
    with KafkaBroker(properties) as broker:
        yield broker


class Rules:
    """Who may write to one topic."""

    def __init__(self, broker: KafkaBroker, topic: str) -> None:
        self._client = admin.AdminClient({"bootstrap.servers": broker.address})
        self._topic = topic

    def forbid(self) -> None:
        names = ["READ", "DESCRIBE", "DESCRIBE_CONFIGS"]
        rules = [self._rule(name, admin.AclPermissionType.ALLOW) for name in names]
        rules.append(self._rule("WRITE", admin.AclPermissionType.DENY))
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


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("what", ["deleted", "made anew", "forbidden"])
async def test_no_event_is_blamed_for_a_changelog_that_takes_nothing(
    broker: KafkaBroker, what: str, guarantee: str
) -> None:
    scene = Scene(broker, guarantee)
    rules = Rules(broker, scene.changelog)
    at = trickle.TopicPartition(scene.source.name, 0)
    options = TransportOptions()
    with trio.fail_after(LIMIT):
        async with open_transport(broker.url, options) as transport:

            async def committed() -> int:
                found = (await transport.admin.committed(scene.name, [at], stable=False))[at]
                return 0 if found is None else found.offset

            async def reached(offset: int) -> None:
                while await committed() < offset:  # noqa: ASYNC110
                    await trio.sleep(0.05)

            async def echoed() -> list[int]:
                place = trickle.TopicPartition(scene.out.name, 0)
                high = (await transport.admin.watermarks([place]))[place].high
                values: list[int] = []
                async with transport.reader({place: 0}) as reader:
                    while reader.positions()[place] < high:
                        for batch in await reader.fetch():
                            values += [int(value or b"") for value in batch.values()]
                return values

            with pytest.raises((trickle.TopicError, ExceptionGroup)) as caught:
                async with scene.open():
                    for value in range(10):
                        await scene.source.send(value)
                    await reached(10)
                    if what == "forbidden":
                        rules.forbid()
                    else:
                        await transport.admin.delete([scene.changelog])
                    if what == "made anew":
                        spec = TopicSpec(name=scene.changelog, partitions=1, compacting=True)
                        await transport.admin.declare([spec])
                    for value in range(10, 20):
                        await scene.source.send(value)
                    await trio.sleep_forever()
            assert scene.changelog in repr(caught.value)
            place = await committed()
            assert set(range(place)) <= set(await echoed())

            rules.allow()
            async with scene.open():
                await reached(20)
            found = await echoed()
            assert set(found) == set(range(20))
            if guarantee == "exactly_once":
                assert found == list(range(20))
