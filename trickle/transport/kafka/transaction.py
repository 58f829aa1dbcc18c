"""The thread's side of a producer: transactions, and what to do when one fails.

A transactional producer always has a transaction open, so that effects can be produced from Trio's
thread at any time but during a commit. What a failed commit leads to:

=====================================  =========================================================
the client says                        we do
=====================================  =========================================================
retriable                              try again, until the deadline
it must be aborted                     abort, begin; ``CommitFailed``
it must be aborted, a record was       a new producer (after such an abort the next transaction
refused                                would fail once more, by OUT_OF_ORDER); ``CommitFailed``
                                       with the record
timed out                              a new producer of the same id; ``CommitFailed``, the
                                       outcome is to be read from the committed offsets
fenced, open longer than its timeout   the broker ended it: a new producer; ``CommitFailed``
fenced                                 ``ProducerFenced``: there is a rival
that no broker was up since the last   a new producer; ``CommitFailed``
anything else                          a new producer; ``CommitFailed``
=====================================  =========================================================

A broker that was killed right after a commit can have acknowledged it, and forget it (see
:mod:`.again`). What is forgotten is aborted once more at the start of the next generation. A commit
before that would commit the places that it touches, the group's offsets first of all, and what is
aborted then in others is lost. So none is tried on a client that has lost all brokers in between.

After a call that timed out no transaction is ever begun on the same producer: the client lacks
KIP-890's epoch bump, so the late end of the old transaction could hit the new one. A new producer
with the same id has a new epoch, and its ``init_transactions`` ends what the old one left.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from trickle.exceptions import CommitFailed, ProducerFenced, TransportError
from trickle.transport.contract import ConsumerOptions
from trickle.transport.kafka.blame import find_refused
from trickle.transport.kafka.closing import bury
from trickle.transport.kafka.config import configuration_error
from trickle.transport.kafka.errors import (
    FENCED,
    MEMBERSHIP,
    UNAUTHORIZED,
    UNKNOWN_TOPIC,
    error_of,
    failed,
    said,
)
from trickle.transport.kafka.offsets import as_partitions
from trickle.transport.kafka.patience import Caller
from trickle.utils.failpoints import fail_point

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confluent_kafka import TopicPartition as Partition

    from trickle.transport.contract import Mark, ProducerOptions
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog

__all__ = ["Content", "Transactions", "bare_metadata", "make_producer"]

_ALL_BROKERS_DOWN = KafkaError._ALL_BROKERS_DOWN  # pyright: ignore[reportPrivateUsage]
# The client closes its first connection once it knows the brokers' names. If it then looks for the
# transaction's coordinator before it has another, it looks again half a second later, one time in
# ten (librdkafka 2.16). A second question has it connected; about a topic that each cluster has.
_ANY_TOPIC = "__consumer_offsets"
_MARKED = 60.0  # seconds after which each place has its mark, late news of an outage included
_COMMIT_SHARE = 0.6  # of the request timeout; the rest is for a new producer


def make_producer(
    config: KafkaConfig,
    options: ProducerOptions,
    log: ClientLog,
    *,
    error_cb: Callable[[KafkaError], None] | None = None,
    more: Mapping[str, str | int] | None = None,
) -> Producer:
    """Make the client.

    Args:
        error_cb: gets errors that belong to no call; the log unless given.
        more: options of librdkafka, above all others.

    Raises:
        ConfigurationError: it refuses an option of the user's.
    """
    settings = {**config.producer(options), **(more or {})}
    settings["logger"] = log
    settings["error_cb"] = error_cb or log.error
    try:
        return Producer(settings)
    except KafkaException as error:
        raise configuration_error(error, config) from error


def bare_metadata(config: KafkaConfig, log: ClientLog, group: str) -> object:
    """Return the metadata of a consumer of the group that has not joined: no member is checked.

    For programs that write a group's offsets from outside it.
    """
    consumer = Consumer({**config.consumer(ConsumerOptions(group=group, topics=())), "logger": log})
    metadata = consumer.consumer_group_metadata()
    bury(consumer)
    return metadata


class Content:
    """What Trio's side knows of a transaction.

    Attributes:
        topics: all that records were produced to: an error may not name its topic.
        since: when the first record was produced (monotonic seconds).
    """

    __slots__ = ("since", "topics")

    def __init__(self) -> None:
        self.topics: set[str] = set()
        self.since: float | None = None

    def note(self, topic: str) -> None:
        """A record is produced to the topic."""
        if topic not in self.topics:
            self.topics.add(topic)
            self.since = self.since or time.monotonic()


class Transactions:
    """A transactional producer that is made anew when it has to be.

    Everything but the attributes is for the producer's thread.

    Attributes:
        client: the current producer, with a transaction open unless :attr:`broken`.
        broken: the last try to make a new producer failed, so there is none to produce to.
    """

    def __init__(
        self,
        config: KafkaConfig,
        options: ProducerOptions,
        log: ClientLog,
        doubt: Callable[[], None],
    ) -> None:
        self.client: Producer
        self._caller: Caller
        self._opening: Caller | None = None
        self._abandoned = False
        self.broken = True
        self._rival: ProducerFenced | None = None
        self._bare: dict[str, object] = {}
        self._began_to_end = -math.inf  # the last commit that was acknowledged, monotonic seconds
        self._outage_at = math.inf  # the first time since then that no broker was up
        self._config = config
        self._options = options
        self._log = log
        self._doubt = doubt
        self._id = options.transactional_id or ""

    def open(self, share: float = 1.0) -> None:
        """Make the producer, end what an earlier one of this id left, and begin.

        Args:
            share: of the request timeout that it may take.
        """
        deadline = time.monotonic() + self._config.request_timeout * share
        caller = self._opening = Caller()
        if self._abandoned:
            caller.give_up()
        client = make_producer(self._config, self._options, self._log, error_cb=self._notice)
        try:
            for _ in range(2):
                with suppress(KafkaException):  # what is wrong is said by what follows
                    caller.call(deadline, client.list_topics, _ANY_TOPIC)
            caller.call(deadline, client.init_transactions)
            caller.check()
            client.poll(0)  # it says now that it did not reach some at first
            self._outage_at = math.inf
            client.begin_transaction()
        except KafkaException as raised:
            caller.end()
            bury(client)
            error = error_of(raised)
            what = f"opening the transactional producer {self._id!r}"
            if error.code() in FENCED:
                raise self._fenced(error) from raised
            timeout = self._config.request_timeout
            raise failed(self._config.url, timeout, what, error) from raised
        self._opening = None
        self.client = client
        self._caller = caller
        self.broken = False

    def abandon(self) -> None:
        """Nobody waits for an opening any more: end it at once, before it takes the id. From Trio.

        One that goes on takes the id from its successor, which then looks for a rival.
        """
        self._abandoned = True
        if self._opening is not None:
            self._opening.give_up()

    def commit(
        self, content: Content, offsets: list[Partition], metadata: object, mark: Mark | None
    ) -> None:
        """Commit what was produced, the offsets, and the mark, and begin anew."""
        if self.broken:
            self._reopen()
            raise CommitFailed(
                f"what was produced for {self._id!r} is lost, as its producer was: commit again"
            )
        client = self.client
        deadline = time.monotonic() + self._config.request_timeout * _COMMIT_SHARE
        try:
            self._see_to_brokers()
            if offsets:
                metadata = metadata or self._bare_metadata(self._options.group or "")
                self._caller.call(deadline, client.send_offsets_to_transaction, offsets, metadata)
                fail_point("commit-offsets-sent")
            if mark is not None:
                self._mark(deadline, mark)
            self._see_to_brokers()
            self._began_to_end, self._outage_at = time.monotonic(), math.inf
            self._caller.call(deadline, client.commit_transaction)
            fail_point("commit-broker")
            self._begin()
        except KafkaException as raised:
            raise self._recover(error_of(raised), content) from raised

    def _see_to_brokers(self) -> None:
        """See that there was a broker all the time since the last commit began to end.

        Raises:
            CommitFailed: there was none for a moment, and what was committed may be forgotten.
            KafkaException: the client has failed for good meanwhile.
        """
        self.client.poll(0)
        if self._shaken:
            self._replace()
            raise CommitFailed(
                f"no broker was there for a moment since the last commit of {self._id!r}, which "
                "may be forgotten: what is left of that is looked for first"
            )

    def _notice(self, error: KafkaError) -> None:
        if error.code() == _ALL_BROKERS_DOWN:
            self._outage_at = min(self._outage_at, time.monotonic())
            if self._shaken and not self.broken:
                self._doubt()
        self._log.error(error)

    @property
    def _shaken(self) -> bool:
        """Whether no broker was there for a moment after the last commit."""
        return self._outage_at - self._began_to_end < _MARKED

    def may_mark(self, mark: Mark) -> bool:
        """Tell whether transactions may be marked, by one that is dropped."""
        if self.broken:
            self._reopen()
        allowed = True
        try:
            self._mark(time.monotonic() + self._config.request_timeout * _COMMIT_SHARE, mark)
        except KafkaException as raised:
            error = error_of(raised)
            if error.code() not in UNAUTHORIZED | UNKNOWN_TOPIC:
                raise self._recover(error, Content()) from raised
            allowed = False
        self.abort(Content())
        return allowed

    def abort(self, content: Content) -> None:
        """Drop what was produced, and begin anew."""
        if self.broken:
            self._reopen()
            return
        deadline = time.monotonic() + self._config.request_timeout * _COMMIT_SHARE
        try:
            self._caller.call(deadline, self.client.abort_transaction)
            self._begin()
        except KafkaException as raised:
            error = error_of(raised)
            if self._has_rival(error, content):
                raise self._fenced(error) from raised
            self._replace()

    def close(self, timeout: float) -> None:
        """Drop what was produced, so that no reader has to wait for it, and close the client."""
        if self.broken:
            return
        try:
            self._caller.call(time.monotonic() + timeout, self.client.abort_transaction)
        except KafkaException as raised:
            # The broker ends it after the transaction's timeout, or a successor does.
            self._log.error(error_of(raised))
        self._give_up()
        bury(self.client)

    def _mark(self, deadline: float, mark: Mark) -> None:
        offsets, metadata = as_partitions({mark.at: mark.offset}), self._bare_metadata(mark.group)
        self._caller.call(deadline, self.client.send_offsets_to_transaction, offsets, metadata)

    def _bare_metadata(self, group: str) -> object:
        if group not in self._bare:
            self._bare[group] = bare_metadata(self._config, self._log, group)
        return self._bare[group]

    def _begin(self) -> None:
        self.client.begin_transaction()

    def _recover(self, error: KafkaError, content: Content) -> TransportError:
        """Make the producer ready again where that is possible; return what is to be raised."""
        if self._has_rival(error, content):
            return self._fenced(error)
        refused = find_refused(error, content.topics, self.client, self._config, self._log)
        if error.txn_requires_abort() and refused is None:
            deadline = time.monotonic() + self._config.request_timeout * (1 - _COMMIT_SHARE)
            try:
                self._caller.call(deadline, self.client.abort_transaction)
                self._begin()
            except KafkaException:
                self._replace()
            return CommitFailed(
                f"the transaction of {self._id!r} was aborted: {said(error)}",
                superseded=error.code() in MEMBERSHIP,
            )
        overdue = error.code() in FENCED
        self._replace()
        if refused is not None:
            return CommitFailed(f"the transaction was aborted: {refused}", refused=refused)
        if overdue:
            return CommitFailed(
                f"the broker ended the transaction of {self._id!r}, as it was open longer than "
                f"transaction_timeout={self._options.transaction_timeout:g} s"
            )
        return CommitFailed(
            f"whether the transaction of {self._id!r} was committed is not known "
            f"({said(error)}): the committed offsets tell"
        )

    def _replace(self) -> None:
        """Destroy the producer and make a new one with the same id."""
        self._give_up()
        old = self.client
        try:
            old.purge(blocking=False)  # so that closing it waits for no delivery
        except KafkaException as raised:
            self._log.error(error_of(raised))
        bury(old)
        self.open(1 - _COMMIT_SHARE)

    def _give_up(self) -> None:
        self.broken = True
        self._caller.end()

    def _has_rival(self, error: KafkaError, content: Content) -> bool:
        if error.code() not in FENCED:
            return False
        # The broker fences us as well when our transaction outlives its timeout.
        age = 0.0 if content.since is None else time.monotonic() - content.since
        return age < self._options.transaction_timeout

    def _fenced(self, error: KafkaError) -> ProducerFenced:
        if not self.broken:
            self._give_up()
            bury(self.client)
        self._rival = ProducerFenced(
            f"another producer has taken the transactional id {self._id!r} ({said(error)}): "
            "two workers may not share one, see that each has its own data directory and host name"
        )
        return self._rival

    def _reopen(self) -> None:
        """Make the producer that could not be made before; never against a rival."""
        if self._rival is not None:
            raise self._rival
        self.open()
