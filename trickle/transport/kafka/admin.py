"""Looks at topics and groups, and declares topics.

The AdminClient's calls return futures that its own thread completes; some block. All run in worker
threads under the request timeout. A client lives until its calls have ended: one that is collected
fails its pending futures.

A client that once asked for a group's coordinator while the broker restarted may wait for that
answer for ever, and so may each later call that needs the coordinator (seen with librdkafka 2.16).
So after a call without an answer in time the next ones go to a new client.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio
from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
)
from confluent_kafka import TopicPartition as Partition

from trickle.exceptions import TopicError
from trickle.transport.contract import ProducerOptions, TopicInfo, Watermarks
from trickle.transport.kafka.again import HELD_BACK, abort_again
from trickle.transport.kafka.closing import bury
from trickle.transport.kafka.config import configuration_error
from trickle.transport.kafka.errors import (
    AWAY,
    PASSING,
    STALE,
    UNKNOWN_TOPIC,
    error_of,
    failed,
    said,
    unavailable,
)
from trickle.transport.kafka.fork import forked_error, watch_forks
from trickle.transport.kafka.offsets import CommittedReader
from trickle.transport.kafka.patience import Caller
from trickle.transport.kafka.stubs import (
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)
from trickle.transport.kafka.transaction import make_producer
from trickle.types import Places, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from trickle.transport.contract import CommittedOffset, TopicSpec
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog
    from trickle.transport.kafka.stubs import TypedAdmin

__all__ = ["KafkaAdmin", "told", "topic_config"]

T = TypeVar("T")

_TRANSPORT = KafkaError._TRANSPORT  # pyright: ignore[reportPrivateUsage]
_THREADS = 8
_PAUSE = 0.05  # seconds between looks at what the broker is about to finish
# A call for a group's coordinator that ran out of the client's own time would abort the process
# once the coordinator is found (see .offsets): it gets all the time, and nobody waits for its end.
_NEVER = 3_600.0


class KafkaAdmin:
    """See :class:`trickle.transport.contract.Admin`."""

    def __init__(self, config: KafkaConfig, log: ClientLog) -> None:
        self._config = config
        self._log = log
        self._client = self._make()
        self._doubtful: TypedAdmin | None = None  # the one before, whose calls may be under way
        self._readers: dict[tuple[str, bool], CommittedReader] = {}
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._forked = False
        watch_forks(self)

    def _make(self) -> TypedAdmin:
        settings = self._config.admin()
        settings["logger"] = self._log
        settings["error_cb"] = self._log.error
        try:
            return cast("TypedAdmin", AdminClient(settings))
        except KafkaException as error:
            raise configuration_error(error, self._config) from error

    def _doubt(self, client: TypedAdmin) -> None:
        """A call of this client got no answer: the next ones have a new client."""
        if client is not self._client or self._forked:
            return
        doubtful, self._doubtful, self._client = self._doubtful, client, self._make()
        if doubtful is not None:  # older than one timeout: its calls have ended
            bury(_Closing(doubtful))

    async def check(self) -> None:
        """See that the broker answers.

        Raises:
            BrokerUnavailable: it does not.
        """
        await self._run("connecting", self._look)

    def _look(self, timeout: float) -> None:
        self._client.list_topics(timeout=timeout)

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicInfo]:
        """Return the topics that exist, of those named, or all that are not internal."""
        if names is not None and not names:
            return {}
        return await self._run("looking at topics", self._topics, names)

    def _topics(self, timeout: float, names: Collection[str] | None) -> dict[str, TopicInfo]:
        deadline = time.monotonic() + timeout
        if names is None:
            listed = self._client.list_topics(timeout=timeout).topics
            names = list(listed)
        if not names:
            return {}
        found: dict[str, TopicInfo] = {}
        wanted = sorted(set(names) - {""})
        if not wanted:
            return {}
        answers = self._client.describe_topics(TopicCollection(wanted), request_timeout=timeout)
        described: dict[str, Any] = {}
        for name, future in answers.items():
            try:
                topic = future.result(_left(deadline))
            except KafkaException as raised:
                if error_of(raised).code() in UNKNOWN_TOPIC:
                    continue
                raise
            if not topic.is_internal:
                described[name] = topic
        settings = self._settings(list(described), deadline)
        for name, topic in described.items():
            setting = settings.get(name, {})
            size, cleanup = setting.get("max.message.bytes"), setting.get("cleanup.policy")
            found[name] = TopicInfo(
                name=name,
                topic_id=str(topic.topic_id),
                partitions=len(topic.partitions),
                record_bytes_max=None if size is None else int(size),
                compacting=None if cleanup is None else "compact" in cleanup,
            )
        return found

    def _settings(self, names: list[str], deadline: float) -> dict[str, dict[str, str]]:
        """Return the settings of the topics whose configuration this user may see."""
        if not names:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        settings: dict[str, dict[str, str]] = {}
        answers = self._client.describe_configs(resources, request_timeout=_left(deadline))
        for resource, future in answers.items():
            try:
                entries = future.result(_left(deadline))
            except KafkaException as raised:
                error = error_of(raised)
                if error.code() in PASSING:
                    raise
                self._log.error(error)  # not allowed to look: the broker itself will judge
                continue
            settings[resource.name] = {
                name: entry.value for name, entry in entries.items() if entry.value is not None
            }
        return settings

    async def declare(self, specs: Sequence[TopicSpec]) -> None:
        """Create the topics that do not exist; wait until all are there."""
        if specs:
            await self._run("declaring topics", self._declare, specs)

    def _declare(self, timeout: float, specs: Sequence[TopicSpec]) -> None:
        deadline = time.monotonic() + timeout
        wanted = {spec.name: spec for spec in specs}
        known = self._topics(timeout, list(wanted))
        missing = {name: spec for name, spec in wanted.items() if name not in known}
        while missing:
            new = [
                NewTopic(
                    spec.name,
                    num_partitions=-1 if spec.partitions is None else spec.partitions,
                    replication_factor=-1 if spec.replicas is None else spec.replicas,
                    config=topic_config(spec),
                )
                for spec in missing.values()
            ]
            try:
                answers = self._client.create_topics(new, request_timeout=_left(deadline))
            except (TypeError, ValueError) as wrong:
                raise TopicError(
                    f"the topics {sorted(missing)} could not be declared: {wrong}"
                ) from wrong
            for name, future in answers.items():
                try:
                    future.result(_left(deadline))
                except KafkaException as raised:
                    error = error_of(raised)
                    if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                        pass  # somebody declares the same topics at the same time
                    elif error.code() in PASSING or error.retriable():
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(_PAUSE)
                        continue
                    else:
                        raise TopicError(
                            f"the topic {name!r} could not be declared: {said(error)}"
                        ) from raised
                del missing[name]
        self._wait_for(list(wanted), deadline, there=True)

    async def delete(self, names: Collection[str]) -> None:
        """Delete topics, and wait until they are gone; missing ones are no error."""
        if names:
            await self._run("deleting topics", self._delete, names)

    def _delete(self, timeout: float, names: Collection[str]) -> None:
        deadline = time.monotonic() + timeout
        answers = self._client.delete_topics(sorted(set(names)), request_timeout=timeout)
        for name, future in answers.items():
            try:
                future.result(_left(deadline))
            except KafkaException as raised:
                error = error_of(raised)
                if error.code() in UNKNOWN_TOPIC:
                    continue
                if error.code() in PASSING:
                    raise
                raise TopicError(f"the topic {name!r} was not deleted: {said(error)}") from raised
        self._wait_for(list(names), deadline, there=False)

    def _wait_for(self, names: list[str], deadline: float, *, there: bool) -> None:
        """Wait until topics have leaders, or are gone: both happen after the broker's answer."""
        while True:
            listed = self._client.list_topics(timeout=_left(deadline)).topics
            for name in names:
                topic = listed.get(name)
                if topic is None or topic.error is not None:
                    ready = not there
                else:
                    ready = there and all(p.leader >= 0 for p in topic.partitions.values())
                if not ready:
                    break
            else:
                return
            if time.monotonic() > deadline:
                state = "appear" if there else "go"
                raise TopicError(f"the topic {name!r} did not {state} in time; try again")
            time.sleep(_PAUSE)

    async def delete_records(self, before: Mapping[TopicPartition, int]) -> None:
        """Delete the records below the given offsets."""
        if before:
            await self._run("deleting records", self._delete_records, before)

    def _delete_records(self, timeout: float, before: Mapping[TopicPartition, int]) -> None:
        deadline = time.monotonic() + timeout
        partitions = [Partition(tp.topic, tp.partition, at) for tp, at in before.items()]
        answers = self._client.delete_records(partitions, request_timeout=timeout)
        for partition, future in answers.items():
            try:
                future.result(_left(deadline))
            except KafkaException as raised:
                error = error_of(raised)
                if error.code() in PASSING:
                    raise
                raise TopicError(
                    f"records of topic {partition.topic!r}, partition {partition.partition}, "
                    f"were not deleted: {said(error)}"
                ) from raised

    async def watermarks(
        self, partitions: Collection[TopicPartition], *, stable: bool = False
    ) -> Mapping[TopicPartition, Watermarks]:
        """Return low and high watermarks; the high one counts records not yet committed too."""
        if not partitions:
            return {}
        isolation = IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED
        return await self._run("asking for watermarks", self._watermarks, partitions, isolation)

    def _watermarks(
        self, timeout: float, partitions: Collection[TopicPartition], isolation: IsolationLevel
    ) -> dict[TopicPartition, Watermarks]:
        deadline = time.monotonic() + timeout
        ends: list[dict[TopicPartition, int]] = []
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest()):
            answers = self._client.list_offsets(
                {Partition(tp.topic, tp.partition): spec for tp in partitions},
                isolation_level=isolation,
                request_timeout=_left(deadline),
            )
            found: dict[TopicPartition, int] = {}
            for partition, future in answers.items():
                where = TopicPartition(partition.topic, partition.partition)
                try:
                    found[where] = told(future.result(_left(deadline)).offset)
                except KafkaException as raised:
                    error = error_of(raised)
                    if error.code() in UNKNOWN_TOPIC:
                        raise TopicError(
                            f"there is no partition {where.partition} of topic {where.topic!r}"
                        ) from raised
                    raise
            ends.append(found)
        return {tp: Watermarks(ends[0][tp], ends[1][tp]) for tp in partitions}

    async def committed(
        self, group: str, partitions: Collection[TopicPartition], *, stable: bool = True
    ) -> Mapping[TopicPartition, CommittedOffset | None]:
        """Return the group's committed offsets; None where there is none."""
        if not partitions:
            return {}
        what = f"asking for the committed offsets of group {group!r}"
        return await self._run(what, self._committed, group, partitions, stable)

    def _committed(
        self, timeout: float, group: str, partitions: Collection[TopicPartition], stable: bool
    ) -> dict[TopicPartition, CommittedOffset | None]:
        if not stable:
            return self._reader(group, stable=False).read(partitions, timeout)
        try:
            return self._reader(group, stable=True).read(partitions, timeout * 0.9)
        except KafkaException as raised:
            if error_of(raised).code() in AWAY:  # or is it a transaction that does not end?
                self._reader(group, stable=False).read(partitions, timeout * 0.1)
                unstable = KafkaError(
                    KafkaError.UNSTABLE_OFFSET_COMMIT, "a transaction that has not ended holds them"
                )
                raise KafkaException(unstable) from raised
            raise

    def _reader(self, group: str, *, stable: bool) -> CommittedReader:
        reader = self._readers.get((group, stable))
        if reader is None:
            made = CommittedReader(self._config, self._log, group, stable=stable)
            reader = self._readers.setdefault((group, stable), made)
        return reader

    async def members(self, group: str) -> Mapping[str, frozenset[TopicPartition]]:
        """Return who is in a group, and what each of them is assigned."""
        return await self._run(f"looking at group {group!r}", self._members, group)

    def _members(self, timeout: float, group: str) -> dict[str, frozenset[TopicPartition]]:
        deadline = time.monotonic() + timeout
        while True:
            asked = self._client.describe_consumer_groups([group], request_timeout=_NEVER)
            try:
                found = asked[group].result(_left(deadline))
                break
            except KafkaException as raised:
                error = error_of(raised)
                if error.code() == KafkaError.GROUP_ID_NOT_FOUND:
                    return {}
                if error.code() not in PASSING or time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE)  # the coordinator of a group moves, or begins to be one
        return {
            member.member_id: frozenset(
                TopicPartition(at.topic, at.partition) for at in member.assignment.topic_partitions
            )
            for member in found.members
        }

    async def fence(
        self, transactional_id: str, *, groups: Collection[str] = (), places: Places = ()
    ) -> None:
        """End the transaction that a dead producer of this id may have left, and the producer."""
        what = f"fencing {transactional_id!r}"
        await self._run(what, self._fence, transactional_id, groups, places)

    def _fence(
        self, timeout: float, transactional_id: str, groups: Collection[str], places: Places
    ) -> None:
        deadline = time.monotonic() + timeout
        options = ProducerOptions(transactional_id=transactional_id)
        more = HELD_BACK if places else None
        producer, caller = make_producer(self._config, options, self._log, more=more), Caller()
        try:
            caller.call(deadline, producer.init_transactions)
            if places:
                abort_again(self._config, self._log, caller, producer, groups, places, deadline)
        finally:
            caller.end()
            bury(producer)

    def _patiently(self, fn: Callable[..., T], timeout: float, *args: Any) -> T:
        """Call ``fn(timeout, *args)``, again while what it fails by may pass: all may be repeated.

        After a restart of the broker the client's metadata is of the past for a moment.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                return fn(_left(deadline), *args)
            except KafkaException as raised:
                error = error_of(raised)
                passing = error.code() in STALE or error.retriable()
                if not passing or time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE)
            self._client.list_topics(timeout=_left(deadline))  # brings the metadata up to date

    async def _run(self, what: str, fn: Callable[..., T], *args: Any) -> T:
        """Run ``fn(timeout, *args)`` in a thread; its errors become trickle's."""
        if self._forked:
            raise forked_error()
        timeout = self._config.request_timeout
        client = self._client
        with trio.move_on_after(timeout + 1):  # the call itself gives up before
            try:
                return await trio.to_thread.run_sync(
                    self._patiently, fn, timeout, *args,
                    abandon_on_cancel=True, limiter=self._limiter,
                )  # fmt: skip
            except KafkaException as raised:
                error = error_of(raised)
                if error.code() in AWAY:
                    self._doubt(client)
                raise failed(self._config.url, timeout, what, error) from raised
            except TimeoutError as raised:
                self._doubt(client)
                raise unavailable(self._config.url, timeout, what, None) from raised
            finally:
                self._client.poll(0)  # its log lines
        self._doubt(client)
        raise unavailable(self._config.url, timeout, what, None)

    def close(self) -> None:
        """Let go of the client; closing it may take long, so nobody waits."""
        if not self._forked:
            for client in (self._client, self._doubtful):
                if client is not None:
                    bury(_Closing(client))
            for reader in self._readers.values():
                reader.close()

    def in_forked_child(self) -> list[object]:
        """See :mod:`.fork`."""
        self._forked = True
        return [self._client, self._doubtful, *(one.client for one in self._readers.values())]


def told(offset: int) -> int:
    """Return an offset that the client tells.

    Raises:
        KafkaException: it says "invalid", with no error, as it does of a broker that goes away in
            the midst of the question. Taken as an end, everything would lie outside of the topic.
    """
    if offset < 0:
        raise KafkaException(KafkaError(_TRANSPORT, f"the client knows no offset ({offset})"))
    return offset


class _Closing:
    """An AdminClient closes as a context manager only."""

    def __init__(self, client: TypedAdmin) -> None:
        self._client = cast("AdminClient", client)

    def close(self) -> None:
        self._client.__exit__(None, None, None)


def topic_config(spec: TopicSpec) -> dict[str, str]:
    """Return a topic's configuration in Kafka's own names; what the spec leaves open is absent."""
    config: dict[str, str] = {}
    if spec.retention_ms is not None:
        config["retention.ms"] = str(spec.retention_ms)
    policies = [
        name for name, wanted in (("compact", spec.compacting), ("delete", spec.deleting)) if wanted
    ]
    if policies:
        config["cleanup.policy"] = ",".join(policies)
    elif spec.compacting is False or spec.deleting is False:
        config["cleanup.policy"] = "delete"
        if spec.deleting is False:  # nothing is to be deleted, and nothing compacted
            config.setdefault("retention.ms", "-1")
    return {**config, **spec.config}


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.05)
