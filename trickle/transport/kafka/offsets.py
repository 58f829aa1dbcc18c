"""Reads a group's committed offsets, by a consumer that never joins the group.

Not by the AdminClient, which has calls for it: one that waited in vain for the group's coordinator
frees what it needs once the coordinator is found after all, and the process aborts ("Assertion
`eonce->refcnt > 0' failed"); an answer that the coordinator has moved ends the process by SIGSEGV
(librdkafka 2.16, its issues 4605 and 5040). A restart of the broker is enough for either.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Partition

from trickle.transport.contract import CommittedOffset, ConsumerOptions
from trickle.transport.kafka.closing import bury
from trickle.transport.kafka.config import configuration_error
from trickle.transport.kafka.errors import AWAY, error_of
from trickle.types import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog

__all__ = ["CommittedReader", "as_partitions"]

_PAUSE_MAX = 0.05  # seconds between looks at offsets that a transaction still holds back
_TIMED_OUT = KafkaError._TIMED_OUT  # pyright: ignore[reportPrivateUsage]


def as_partitions(offsets: Mapping[TopicPartition, CommittedOffset]) -> list[Partition]:
    """Return offsets as the client takes them."""
    return [Partition(tp.topic, tp.partition, at.offset, at.metadata) for tp, at in offsets.items()]


class CommittedReader:
    """Asks for one group's committed offsets; for any thread, one call at a time.

    Args:
        group: whose.
        stable: wait for offsets that a pending transaction holds; else its last ones are told.
    """

    def __init__(self, config: KafkaConfig, log: ClientLog, group: str, *, stable: bool) -> None:
        self._config = config
        self._log = log
        self._group = group
        self._stable = stable
        self._turn = threading.Lock()
        self._client: Consumer | None = None

    def read(
        self, partitions: Collection[TopicPartition], timeout: float
    ) -> dict[TopicPartition, CommittedOffset | None]:
        """Return the committed offsets; None where there is none.

        Raises:
            KafkaException: what the broker says, or that it said nothing in time.
        """
        deadline = time.monotonic() + timeout
        if not self._turn.acquire(timeout=timeout):
            raise KafkaException(KafkaError(_TIMED_OUT, "an earlier call has not ended"))
        try:
            return self._read(partitions, deadline)
        except KafkaException:
            self.close()  # the next call has a client without a past
            raise
        finally:
            self._turn.release()

    def _read(
        self, partitions: Collection[TopicPartition], deadline: float
    ) -> dict[TopicPartition, CommittedOffset | None]:
        client = self._client = self._client or self._make()
        pause = _PAUSE_MAX / 8
        while True:
            error, offsets = None, list[Partition]()
            try:
                asked = [Partition(tp.topic, tp.partition) for tp in partitions]
                offsets = client.committed(asked, timeout=max(deadline - time.monotonic(), 0.05))
                error = next((at.error for at in offsets if at.error is not None), None)
            except KafkaException as raised:
                error = error_of(raised)
            client.poll(0)  # its log lines
            if error is None:
                break
            if time.monotonic() > deadline or not (error.code() in AWAY or error.retriable()):
                raise KafkaException(error)
            # Just committed offsets turn stable within milliseconds, a dead worker's in seconds.
            time.sleep(pause)
            pause = min(pause * 2, _PAUSE_MAX)
        found: dict[TopicPartition, CommittedOffset | None] = dict.fromkeys(partitions)
        for at in offsets:
            if at.offset >= 0:
                where = TopicPartition(at.topic, at.partition)
                found[where] = CommittedOffset(at.offset, at.metadata or "")
        return found

    def _make(self) -> Consumer:
        settings = self._config.consumer(ConsumerOptions(group=self._group, topics=()))
        # What is asked for is stable offsets where records are read as committed ones.
        settings["isolation.level"] = "read_committed" if self._stable else "read_uncommitted"
        settings["logger"] = self._log
        settings["error_cb"] = self._log.error
        try:
            return Consumer(settings)
        except KafkaException as error:
            raise configuration_error(error, self._config) from error

    @property
    def client(self) -> Consumer | None:
        """The client, while there is one."""
        return self._client

    def close(self) -> None:
        """Close the client; nobody waits for that."""
        client, self._client = self._client, None
        if client is not None:
            bury(client)
