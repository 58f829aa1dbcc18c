"""Membership of a group by file locks: who is there, who holds which partition numbers.

The files of a group are in ``groups/{group}``:

* ``members/{when}-{pid}-{random}``: one for each member, locked by it, with the topics that it
  wants. A file that nobody has locked was left by a member that died. It is made under another
  name and renamed when it is locked, so that nobody takes a member that is just coming for a dead
  one. Names sort by age, so that a newcomer takes the end of the range and little moves.
* ``partitions/{count}-{number}.lock``: who has it locked holds partition ``number`` of all the
  group's topics with ``count`` partitions. So topics of one count are co-partitioned by nature.
  The member's name stands in it, for others to see.

There is no coordinator. Each member lists the members that live, computes the same range assignment
(for each count, over the members that want a topic of it), gives back what is no longer its own
after it has drained and committed, and takes what it should have as soon as it is free. The kernel
frees the locks of a process that dies, however it dies. A *stopped* process keeps its partitions:
it is neither dead nor evicted, so nobody else can touch what it holds, and it goes on where it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from trickle.exceptions import CommitFailed, TransportError
from trickle.types import TopicPartition
from trickle.utils.files import FileLock, close_owned, open_owned, private_directory
from trickle.utils.partitioning import range_assignment

__all__ = ["GroupFiles", "Membership", "Slot", "look_at_group", "slots_wanted"]


_SLOT = re.compile(r"(\d+)-(\d+)\.lock")


class Slot(NamedTuple):
    """A partition number, among the topics of one partition count."""

    of: int
    number: int


class _Wish(msgspec.Struct, frozen=True):
    """What a member's file says."""

    topics: list[str]


def slots_wanted(
    wishes: Mapping[str, Collection[str]], counts: Mapping[str, int], me: str
) -> frozenset[Slot]:
    """Return the slots that the range assignment gives to one member.

    Args:
        wishes: for each live member the topics that it wants.
        counts: partition counts of the topics that exist.
    """
    classes = {
        name: {str(counts[topic]) for topic in topics if topic in counts}
        for name, topics in wishes.items()
    }
    sizes = {str(count): count for count in counts.values()}
    assigned = range_assignment(classes, sizes)[me]
    return frozenset(Slot(int(count), number) for count, number in assigned)


class GroupFiles:
    """One member's files and locks in a group."""

    def __init__(self, directory: Path, group: str, topics: Iterable[str]) -> None:
        self._members = directory / "groups" / group / "members"
        self._partitions = directory / "groups" / group / "partitions"
        self._wish = _Wish(sorted(topics))
        self._file: int | None = None
        self.name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}"
        self._locks: dict[Slot, FileLock] = {}
        self._left = False

    def join(self) -> None:
        """Make and lock the member's file."""
        for directory in (self._members.parent.parent, self._members.parent):
            private_directory(directory)
        private_directory(self._members)
        private_directory(self._partitions)
        draft = self._members / f".{self.name}"
        file = open_owned(draft, os.O_EXCL)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(file, msgspec.json.encode(self._wish))
            draft.rename(self._members / self.name)
        except BaseException:
            close_owned(file)
            raise
        self._file = file

    def leave(self) -> None:
        """Give everything back and remove the member's file; nothing is taken any more."""
        self._left = True
        self.release(list(self._locks))
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                (self._members / self.name).unlink()
            close_owned(self._file)
            self._file = None

    def stamp(self) -> int:
        """Return something that changes whenever a member comes, goes, or gives back a slot."""
        try:
            return self._members.stat().st_mtime_ns
        except FileNotFoundError:  # deleted, which a look at the files tells in words
            return 0

    def live(self) -> dict[str, Collection[str]]:
        """Return the members that live and the topics they want; remove what dead ones left."""
        wishes: dict[str, Collection[str]] = {self.name: self._wish.topics}
        for name in os.listdir(self._members):
            if name != self.name and not name.startswith("."):
                wish = _look_at(self._members / name)
                if wish is not None:
                    wishes[name] = wish.topics
        return wishes

    @property
    def held(self) -> frozenset[Slot]:
        """The slots whose locks this member has."""
        return frozenset(self._locks)

    def take(self, slots: Iterable[Slot]) -> bool:
        """Lock those slots that are free; tell whether there was one."""
        taken = False
        for slot in () if self._left else slots:
            lock = FileLock(self._partitions / f"{slot.of}-{slot.number}.lock", self.name)
            if lock.acquire():
                self._locks[slot] = lock
                taken = True
        return taken

    def release(self, slots: Iterable[Slot]) -> None:
        """Give slots back, on the writer's thread: no commit of ours is under way there."""
        released = [self._locks.pop(slot) for slot in slots if slot in self._locks]
        for lock in released:
            lock.release()
        if released:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._members)

    def holder(self, slot: Slot) -> int | None:
        """Return the pid of who holds a slot, for messages."""
        return FileLock(self._partitions / f"{slot.of}-{slot.number}.lock").holder()

    def intact(self) -> bool:
        """Tell whether all files that this member has locked still exist."""
        if self._file is None or not os.fstat(self._file).st_nlink:
            return False
        return all(lock.intact() for lock in list(self._locks.values()))


class Membership:
    """Proof of membership at one moment: good until the next rebalance begins to give back.

    Args:
        group: whose.
        files: of the group.
        slots: what is held.
        topics: that are shared out among the members; offsets of others are anybody's.
    """

    def __init__(
        self,
        group: str,
        files: GroupFiles,
        slots: Mapping[TopicPartition, Slot],
        topics: Collection[str],
    ) -> None:
        self._group = group
        self._files = files
        self._slots = slots
        self._topics = topics
        self.stale = False

    def check(self, partitions: Iterable[TopicPartition]) -> None:
        """Raise unless this member holds the partitions; on the writer's thread.

        Raises:
            CommitFailed: it does not.
            TransportError: the files of the group were deleted.
        """
        if self.stale:
            raise CommitFailed(
                f"group {self._group!r}: the assignment has changed since this member read what "
                "it commits; nothing was committed"
            )
        held = self._files.held
        for partition in partitions:
            if partition.topic in self._topics and self._slots.get(partition) not in held:
                raise CommitFailed(
                    f"group {self._group!r}: this member does not hold partition "
                    f"{partition.partition} of topic {partition.topic!r}; nothing was committed"
                )
        if not self._files.intact():
            raise TransportError(
                f"group {self._group!r}: the lock files of the group were deleted while this "
                "member held partitions; nothing was committed. Start the workers again"
            )


def look_at_group(directory: Path, group: str) -> dict[str, tuple[list[str], list[Slot]]]:
    """Return the members of a group that live: the topics that each wants, the slots it holds.

    What a member that died had written into its locks names nobody who lives.
    """
    members = directory / "groups" / group / "members"
    partitions = directory / "groups" / group / "partitions"
    found: dict[str, tuple[list[str], list[Slot]]] = {}
    if not members.is_dir() or not partitions.is_dir():
        return found
    for name in os.listdir(members):
        wish = None if name.startswith(".") else _look_at(members / name)
        if wish is not None:
            found[name] = (wish.topics, [])
    for name in os.listdir(partitions):
        match = _SLOT.fullmatch(name)
        holder = FileLock(partitions / name).note()
        if match and holder in found:
            found[holder][1].append(Slot(int(match[1]), int(match[2])))
    return found


def _look_at(path: Path) -> _Wish | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        # Shared, so that two who look at once do not take each other for the owner.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return msgspec.json.decode(os.read(file, 1 << 20), type=_Wish)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return None
    finally:
        os.close(file)
