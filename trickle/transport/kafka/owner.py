"""The thread's side of a group's member: the only code that touches its Consumer.

Since confluent-kafka 2.16 every method of a Consumer takes an unfair gate, and a commit from
another thread during a rebalance callback hangs for ever. So one thread owns the client. It polls,
hands messages over, and runs the commands that Trio's side puts into its queue; also *inside* a
rebalance callback, while it waits there for the listener, so that the listener can commit.

**What crosses.** To Trio: entries in :attr:`Owner.outbox` (batches, or an error of one
assignment), rung for by one ``run_sync_soon`` at a time, and :class:`Notice`, which the owner
waits for. From Trio: calls by the bridge, and what was taken, in :class:`Epoch`.

**Generations and epochs.** A *generation* is counted up by each change of the assignment; a
command that was given in an earlier one is ignored. An *epoch* is one explicit choice of
positions; each entry carries the epoch it was fetched in, and Trio's side takes entries of the
current one only. So nothing that was fetched before a revocation can come out after it.

**Back-pressure.** While enough is ready, the thread lets the client's own bounded queue fill, and
only looks at it again when half was taken: each look costs a wait for the interpreter's lock, which
Trio's thread holds then, so fewer and larger ones are better. After a second of that it pauses all
partitions and polls on, so that the group never takes a slow worker for a dead one. Pausing drops
what the client has prefetched, which is why it comes late.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaException, Message
from confluent_kafka import TopicPartition as Partition

from trickle.transport.kafka.batch import split
from trickle.transport.kafka.closing import bury
from trickle.transport.kafka.complaints import Complaints
from trickle.transport.kafka.config import configuration_error
from trickle.transport.kafka.epochs import Entry, Epoch, KafkaMember, Kind, Notice
from trickle.types import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trickle.transport.contract import ConsumerOptions
    from trickle.transport.kafka.config import KafkaConfig
    from trickle.transport.kafka.logs import ClientLog
    from trickle.utils.bridge import Bridge

__all__ = ["Entry", "Epoch", "KafkaMember", "Kind", "Notice", "Owner"]

logger = logging.getLogger("trickle.transport.kafka")

_POLL = 0.01  # seconds: how long a command may have to wait on an idle topic
_CONSUME_MAX = 4_000  # each hand-over costs two waits for the interpreter's lock
_READY_RECORDS = 12_000  # kept ready for Trio's side
_FULL_WAIT = 0.02  # seconds between two looks whether half was taken, where nobody says so
_PATIENCE = 1.0  # seconds without a poll before the partitions are paused instead
_START_PATIENCE = 2.0  # seconds until an assignment is left to itself
_CALLBACK_SHARE = 0.9  # of the rebalance timeout, after which the group would evict us


class Owner:
    """See the module. ``ring`` and ``notify`` are called in Trio's thread."""

    def __init__(
        self,
        config: KafkaConfig,
        options: ConsumerOptions,
        log: ClientLog,
        ring: Callable[[], None],
        notify: Callable[[Notice], None],
        left: Callable[[], None],
    ) -> None:
        self.bridge: Bridge  # set before the first command
        self.consumer: Consumer
        self.member = KafkaMember(None)
        self.member_id = ""
        self.outbox: deque[Entry] = deque()  # bounded by _has_room
        self.rung = False
        self.generation = 0
        self.past = -1  # the newest generation whose end the group did not wait for
        self.owned: frozenset[TopicPartition] = frozenset()
        self._config = config
        self._options = options
        self._log = log
        self._ring = ring
        self._notify = notify
        self._left = left
        self._one_topic = len(options.topics) == 1
        self._incremental = options.protocol == "consumer"
        self._epoch = Epoch()
        self._positions: dict[TopicPartition, int] = {}
        self._held: set[TopicPartition] = set()
        self._asleep: set[TopicPartition] = set()  # those held since they were assigned
        self._placed: set[TopicPartition] = set()  # what the client itself has assigned
        self._choked = False
        self._full_since: float | None = None
        self._more = False
        self._ready_bytes_max = options.buffer_bytes // 2
        self._complaints = Complaints(config, options, log)
        self._retired = True  # until it is open
        self._leaving = False
        self._renewing = False
        self._told = False

    # Commands

    def open(self) -> None:
        """Make the client and subscribe; the group is joined by the polls that follow."""
        settings = self._config.consumer(self._options)
        settings["logger"] = self._log
        settings["error_cb"] = self._log.error
        try:
            self.consumer = Consumer(settings)
        except KafkaException as error:
            raise configuration_error(error, self._config) from error
        self._refresh_member()
        self.consumer.subscribe(
            list(self._options.topics),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )
        self._retired = False

    def assign(
        self,
        generation: int,
        epoch: Epoch,
        positions: Mapping[TopicPartition, int],
        paused: frozenset[TopicPartition],
    ) -> None:
        """Fetch from these positions on, unless the assignment has changed since it was asked."""
        if generation != self.generation:
            return
        self._positions = {tp: at for tp, at in positions.items() if tp in self.owned}
        self._held = set(paused) & self._positions.keys()
        self._place(epoch)

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        """Stop fetching these."""
        fresh = (partitions & self._positions.keys()) - self._held
        self._held |= fresh
        if fresh and not self._choked:
            self.consumer.pause(_bare(fresh))

    def resume(self, partitions: frozenset[TopicPartition]) -> None:
        """Fetch these again."""
        held = partitions & self._held
        self._held -= held
        if held and not self._choked:
            self.consumer.resume(_bare(held))
            self._wake(held & self._asleep)
        self._asleep -= held

    def commit(self, offsets: list[Partition]) -> None:
        """Commit offsets and wait for the answer; raises KafkaException."""
        for answer in self.consumer.commit(offsets=offsets, asynchronous=False):
            if answer.error is not None:
                raise KafkaException(answer.error)

    def retire(self) -> None:
        """Stop polling for good; commands are still served."""
        self._retired = True
        self.owned = frozenset()
        self._positions = {}

    def leave(self) -> None:
        """Leave the group, soon: not here, as this may run inside a rebalance callback."""
        self._leaving = True

    def renew(self) -> None:
        """Join the group with a new client, soon: see :meth:`leave`."""
        self._renewing = True

    def _begin_anew(self) -> None:
        self._renewing = False
        if self.owned:
            self._take_away("lost")
        if self._retired:  # meanwhile, by a command
            return
        stuck = self.consumer
        self._placed, self._told, self._more = set(), False, False
        self.open()
        bury(stuck)

    # The loop

    def idle(self) -> None:
        """Do one round of the thread: poll, take what is there, hand it over."""
        if self._leaving:
            self._leaving = False
            self.consumer.close()  # long, where the broker is dead: nobody waits for all of it
            self.bridge.to_trio(self._left)
        if self._retired:
            time.sleep(_POLL)  # nothing to poll: before it is open, and while it is closed
            return
        if self._renewing:
            self._begin_anew()
            return
        if not self._has_room():
            return
        epoch = self._epoch
        # Where the last round took as much as it could there is more, most likely: no poll first.
        messages = self.consumer.consume(_CONSUME_MAX, 0) if self._more else []
        if not messages:
            first = self.consumer.poll(_POLL)
            if first is not None:
                messages = self.consumer.consume(_CONSUME_MAX, 0)
                messages.insert(0, first)
        self._more = len(messages) >= _CONSUME_MAX
        if self._incremental:  # KIP-848's epoch moves without a callback; 10 µs
            self._refresh_member()
        if not messages:
            self._complaints.look_for_missing(self.consumer)
            return
        if epoch is not self._epoch:
            # The assignment changed inside the poll, and these may be of either. Trio's side has
            # got nothing of the new one yet, so it starts again where it was told to start.
            if self._positions:
                self._place(self._epoch)
            return
        if any(map(Message.error, messages)):
            messages = self._records(messages)
            if not messages:
                return
        batches = split(messages, one_topic=self._one_topic)
        size = sum(batch.size_bytes for batch in batches)
        epoch.handed_bytes += size
        epoch.handed_records += len(messages)
        self._hand_over(Entry(epoch, batches, size, len(messages)))

    def _records(self, messages: list[Message]) -> list[Message]:
        """Return the messages that are records; see to the errors among them."""
        records: list[Message] = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
                continue
            at = TopicPartition(message.topic() or "", message.partition() or 0)
            refusal = self._complaints.hear(self.consumer, error, message, self._positions.get(at))
            if refusal is not None:
                self._hand_over(Entry(self._epoch, [], 0, 0, refusal))
        return records

    def _hand_over(self, entry: Entry) -> None:
        self.outbox.append(entry)
        if not self.rung:
            self.rung = True
            self.bridge.to_trio(self._ring)

    def _has_room(self) -> bool:
        """Tell whether to poll now; bring the pause of all partitions up to date."""
        epoch = self._epoch
        if self.has_half(epoch):
            if self._choked:
                self._choked = False
                self._resume_unheld()
            self._full_since = None
            return True
        if self._choked:
            return True
        if self._full_since is None:
            if epoch.is_below(self._ready_bytes_max, _READY_RECORDS):
                return True
            self._full_since = time.monotonic()
        if time.monotonic() - self._full_since < _PATIENCE:
            epoch.waiting = True
            self.bridge.run_pending(_FULL_WAIT)
            return False
        self._choked = True
        running = self._positions.keys() - self._held
        if running:
            self.consumer.pause(_bare(running))
        return True

    def has_half(self, epoch: Epoch) -> bool:
        """Tell whether half of what may be ready was taken; also for Trio's thread."""
        return epoch.is_below(self._ready_bytes_max // 2, _READY_RECORDS // 2)

    def _resume_unheld(self) -> None:
        running = self._positions.keys() - self._held
        if running:
            self.consumer.resume(_bare(running))

    def _refresh_member(self) -> None:
        self.member = KafkaMember(self.consumer.consumer_group_metadata())
        self.member_id = self.consumer.memberid() or self.member_id

    # Positions

    def _place(self, epoch: Epoch) -> None:
        """Give the client the current positions; what it had fetched before is gone."""
        placed = [Partition(tp.topic, tp.partition, at) for tp, at in self._positions.items()]
        waiting: frozenset[TopicPartition] = frozenset()
        if self._incremental:
            # All that is owned stays assigned, or the group would think that we gave it back.
            waiting = self.owned - self._positions.keys()
            placed += [Partition(tp.topic, tp.partition, 0) for tp in waiting]
            if self._placed:
                self.consumer.incremental_unassign(_bare(self._placed))
        # The client remembers what an earlier assignment had paused. Resumed now, it is fetched as
        # it starts; resumed later, nobody would look at it for a second (see _wake).
        silent = waiting | (self._positions.keys() if self._choked else self._held)
        running = self._positions.keys() - silent
        if running:
            self.consumer.resume(_bare(running))
        if not self._incremental:
            self.consumer.assign(placed)
        else:
            self._placed = set(self.owned)
            if placed:
                self.consumer.incremental_assign(placed)
        self._epoch = epoch
        self._await_start(placed)
        if silent:
            self.consumer.pause(_bare(silent))
        self._asleep = set(self._held)

    def _await_start(self, placed: list[Partition]) -> None:
        """Wait until the client has begun to fetch what it was just assigned; most often it has.

        It begins once what it fetched before has been stopped. A pause or a seek that comes in the
        very moment of that makes it drop all that it fetches from then on (librdkafka 2.16: the
        start then bears the older version of the two); a seek that succeeds says that it is over.
        """
        deadline = time.monotonic() + _START_PATIENCE
        for partition in placed:
            while time.monotonic() < deadline:
                try:
                    self.consumer.seek(partition)
                    break
                except KafkaException:
                    time.sleep(0.001)

    def _wake(self, partitions: frozenset[TopicPartition]) -> None:
        """See to it that partitions that have stood still since they were assigned are fetched now.

        A broker's thread of the client that has nothing to fetch sleeps up to a second, and no
        resumption wakes it (librdkafka 2.16, read and measured). A seek does, also to where it
        stands, unless that is 0; so does a request. (By way of another offset it would be fetched
        from there for a moment, and where there is none, it would be stopped for good. A logical
        offset's answer may come late, and be asked for once more: that rewinds it.)
        """
        asleep = self._positions.keys() - self._held
        for tp in partitions:
            at = self._positions[tp]
            if at > 0:
                asleep.discard(tp)
                with suppress(KafkaException):  # then it is fetched a second later
                    self.consumer.seek(Partition(tp.topic, tp.partition, at))
        if asleep and asleep <= partitions:  # else a fetch may be under way: an answer would wait
            with suppress(KafkaException):
                self.consumer.get_watermark_offsets(Partition(*asleep.pop()), _START_PATIENCE)

    # Rebalances: called by the client inside poll, consume and close, in this thread

    def _on_assign(self, client: Consumer, partitions: list[Partition]) -> None:
        if client is not self.consumer:
            return
        if self._retired:
            self._place_nothing([])
            return
        added = _named(partitions)
        self._refresh_member()
        if self._incremental:
            if self._told and not added:
                self._place_nothing([])
                return  # the group only confirms what we have
            if self.owned:
                self._take_away("revoked")
            self._placed |= added
            # Until the positions are known these stand still at a place that is never fetched.
            fresh = [Partition(t, p, 0) for t, p in added]
            self.consumer.incremental_assign(fresh)
            self._await_start(fresh)
            self.consumer.pause(_bare(self._placed))
            added = frozenset(self._placed)
        else:
            self.consumer.assign([])
        self._give(added)

    def _on_revoke(self, client: Consumer, partitions: list[Partition]) -> None:
        self._on_gone("revoked", client, partitions)

    def _on_lost(self, client: Consumer, partitions: list[Partition]) -> None:
        self._on_gone("lost", client, partitions)

    def _on_gone(self, kind: Kind, client: Consumer, partitions: list[Partition]) -> None:
        if client is not self.consumer:  # one that was given up, and is closed by now
            return
        self._refresh_member()
        if self.owned:
            self._take_away(kind)
        self._drop(partitions)

    def _take_away(self, kind: Kind) -> None:
        """Tell that the whole assignment ends, and wait until Trio's side has let go of it."""
        owned, self.owned = self.owned, frozenset()
        self._tell(kind, owned)

    def _give(self, partitions: frozenset[TopicPartition]) -> None:
        self._told = True
        self.owned = partitions
        self._tell("assigned", partitions)

    def _drop(self, partitions: list[Partition]) -> None:
        """Let the client forget what was taken; under KIP-848 the rest is given anew."""
        if not self._incremental:
            self.consumer.unassign()
            return
        gone = _named(partitions) & self._placed
        self._place_nothing(list(gone))
        self._placed -= gone
        if not self._retired:  # nothing is an assignment, too
            self.consumer.pause(_bare(self._placed))
            self._give(frozenset(self._placed))

    def _place_nothing(self, gone: list[TopicPartition]) -> None:
        if not self._incremental:
            self.consumer.assign([])
        elif gone:
            self.consumer.incremental_unassign(_bare(gone))
        else:
            self.consumer.incremental_assign([])

    def _tell(self, kind: Kind, partitions: frozenset[TopicPartition]) -> None:
        """Have the listener told, and serve commands until it returns, within a limit.

        The limit is that of the group: after the rebalance timeout it would evict us, so waiting
        longer serves nobody. In the classic protocol all other members wait with us.
        """
        self.generation += 1
        self._epoch = Epoch()  # nobody's: what may yet be in hand is of no use
        self._positions = {}
        self._held.clear()
        self._choked = False
        self._full_since = None
        notice = Notice(kind, self.generation, partitions)
        self.bridge.to_trio(self._notify, notice)
        limit = self._options.rebalance_timeout * _CALLBACK_SHARE
        deadline = time.monotonic() + limit
        while not notice.done and not self.bridge.stopped:
            left = deadline - time.monotonic()
            if left <= 0:
                logger.warning(
                    "the call for %s partitions took longer than %.0f s, the group goes on "
                    "without it: shorten drain_timeout, or what one event may take (deadline=)",
                    kind, limit,
                )  # fmt: skip
                if kind != "assigned":
                    self.past = self.generation
                return
            self.bridge.run_pending(min(left, 0.1))


def _bare(partitions: Iterable[TopicPartition]) -> list[Partition]:
    return list(itertools.starmap(Partition, partitions))


def _named(partitions: list[Partition]) -> frozenset[TopicPartition]:
    return frozenset(TopicPartition(p.topic, p.partition) for p in partitions)
