"""The brokers of a run, a proxy before each, and what is asked of them from outside the proxies."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.cimpl import NewTopic

from tests.faults.proxy import Proxy
from tests.kafka_broker import KafkaBroker, kafka_jars, make_nodes, start_cluster

__all__ = ["Cluster", "Ends", "Place"]

Place = tuple[str, int]
"""Topic and partition."""

_TIMEOUT = 30.0


def _properties(count: int, session_timeout: float) -> dict[str, str | int | bool]:
    session_ms = round(1_000 * session_timeout)
    properties: dict[str, str | int | bool] = {
        # Overdue transactions are ended soon, as a worker that was killed waits for nobody.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
        # Under KIP-848 these are the brokers' to say; sessions last for 45 s at least by default.
        "group.consumer.min.session.timeout.ms": session_ms,
        "group.consumer.session.timeout.ms": session_ms,
        "group.consumer.min.heartbeat.interval.ms": session_ms // 10,
        "group.consumer.heartbeat.interval.ms": session_ms // 10,
    }
    if count > 1:
        properties |= dict.fromkeys(
            [
                "default.replication.factor",
                "offsets.topic.replication.factor",
                "transaction.state.log.replication.factor",
            ],
            count,
        )
        properties |= dict.fromkeys(
            ["min.insync.replicas", "transaction.state.log.min.isr"], count // 2 + 1
        )
    return properties


class Ends(NamedTuple):
    """Where a partition begins and ends.

    Attributes:
        low: its first offset.
        stable: the last stable offset: where a pending transaction begins, else ``high``.
        high: the high watermark.
    """

    low: int
    stable: int
    high: int


class Cluster:
    """Brokers of one's own, each behind a proxy; a context manager.

    Args:
        count: of brokers; three keep all in three copies, and lose nothing with one of them.
        session_timeout: of members under KIP-848, in seconds; classic ones have their own.

    Attributes:
        proxies: what workers reach the brokers through.
        brokers: themselves.
    """

    def __init__(self, count: int = 1, session_timeout: float = 6.0) -> None:
        self.proxies = [Proxy() for _ in range(count)]
        self.brokers = [
            KafkaBroker(
                _properties(count, session_timeout), heap="512m" if count == 1 else "320m",
                behind=proxy.port, node=node,
            )
            for proxy, node in zip(
                self.proxies, make_nodes(count) if count > 1 else [None], strict=True
            )
        ]  # fmt: skip
        self._replicas = count
        self._admin: Any = None

    def __enter__(self) -> Self:
        try:
            if self._replicas > 1:
                start_cluster(self.brokers)
            else:
                self.brokers[0].start()
        except BaseException:
            self.close()
            raise
        for proxy, broker in zip(self.proxies, self.brokers, strict=True):
            proxy.target = broker.inner_port
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all of it."""
        for proxy in self.proxies:
            proxy.close()
        for broker in self.brokers:
            broker.close()

    @property
    def workers_url(self) -> str:
        """The broker URL for the app under test: the proxies."""
        return "kafka://" + ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies)

    @property
    def servers(self) -> str:
        """The brokers' addresses without the proxies."""
        return ",".join(broker.address for broker in self.brokers)

    @property
    def admin(self) -> Any:
        """A client for looks and topics; one for all, as a collected one fails its futures."""
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})
        return self._admin

    def create(self, names: Iterable[str], partitions: int) -> None:
        """Make topics."""
        new = [
            NewTopic(name, num_partitions=partitions, replication_factor=self._replicas)
            for name in names
        ]
        for future in self.admin.create_topics(new, request_timeout=_TIMEOUT).values():
            future.result(_TIMEOUT)

    def topics(self, prefix: str) -> dict[str, int]:
        """Return the topics that begin so, with their partition counts."""
        listed = self.admin.list_topics(timeout=_TIMEOUT).topics
        return {name: len(t.partitions) for name, t in listed.items() if name.startswith(prefix)}

    def ends(self, places: Iterable[Place]) -> dict[Place, Ends]:
        """Return where partitions begin and end."""
        asked = [TopicPartition(topic, partition) for topic, partition in places]
        low = self._offsets(asked, OffsetSpec.earliest(), committed=False)
        high = self._offsets(asked, OffsetSpec.latest(), committed=False)
        stable = self._offsets(asked, OffsetSpec.latest(), committed=True)
        return {place: Ends(low[place], stable[place], high[place]) for place in low}

    def _offsets(
        self, asked: list[TopicPartition], spec: Any, *, committed: bool
    ) -> dict[Place, int]:
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        answers = self.admin.list_offsets(
            dict.fromkeys(asked, spec), isolation_level=level, request_timeout=_TIMEOUT
        )
        return {
            (at.topic, at.partition): future.result(_TIMEOUT).offset
            for at, future in answers.items()
        }

    def committed(self, group: str, places: Iterable[Place]) -> dict[Place, int]:
        """Return the group's stable committed offsets; those that were never committed are out.

        By a consumer that never joins: the AdminClient's own call for it can end the process.
        """
        asked = [TopicPartition(topic, partition) for topic, partition in places]
        settings = {
            "bootstrap.servers": self.servers,
            "group.id": group,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "log_level": 0,
        }
        client: Any = Consumer(settings)
        deadline = time.monotonic() + _TIMEOUT
        try:
            while True:
                with contextlib.suppress(KafkaException):
                    found = cast("list[Any]", client.committed(asked, timeout=_TIMEOUT))
                    if all(at.error is None for at in found):
                        return {(t.topic, t.partition): t.offset for t in found if t.offset >= 0}
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the committed offsets of {group} are not stable")
                time.sleep(0.1)
        finally:
            client.close()

    def state(self, group: str) -> str:
        """Return a group's state in Kafka's words: STABLE, EMPTY, …; UNKNOWN where there is none.

        From the list of all groups: a look at one alone can wait for ever for its coordinator.
        """
        answer = self.admin.list_consumer_groups(request_timeout=_TIMEOUT).result(_TIMEOUT)
        found = {one.group_id: one.state for one in answer.valid}
        return str(found[group].name) if group in found else "UNKNOWN"

    def describe_producers(self, topic: str, partition: int) -> str:
        """Return what Kafka's own tool says of a partition's producers and all transactions."""
        tool = "org.apache.kafka.tools.TransactionsCommand"
        command = ["java", "-Xmx128m", "-cp", f"{kafka_jars()}/*", tool]
        command += ["--bootstrap-server", self.servers]
        told: list[str] = []
        for what in (
            ["describe-producers", "--topic", topic, "--partition", str(partition)],
            ["list"],
        ):
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    [*command, *what], capture_output=True, text=True, timeout=60, check=False
                )
                told.append(done.stdout or done.stderr)
        return "\n".join(told)
