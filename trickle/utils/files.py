"""Directories and locks on disk: private, no symlinks, and freed by the kernel when we die."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = [
    "FileLock",
    "ForeignPathError",
    "close_owned",
    "open_owned",
    "private_directory",
    "reserve_readers",
    "with_headroom",
]

_owned: set[int] = set()


class ForeignPathError(OSError):
    """A path that is not what we made: a symlink, a file where a directory belongs."""


def private_directory(path: Path) -> Path:
    """Make a directory (and those above) that only this user can enter; return it.

    Raises:
        ForeignPathError: the path itself is a symlink, or no directory.
        OSError: it cannot be made or entered.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise ForeignPathError(errno.ELOOP, "is a symbolic link", str(path)) from None
        if not stat.S_ISDIR(mode):
            raise ForeignPathError(errno.ENOTDIR, "is not a directory", str(path)) from None
    return path


def reserve_readers(path: Path, readers_max: int) -> None:
    """Give LMDB's table of readers, the file beside the data, its blocks on disk.

    It is mapped and written through the map: on a disk that is full it would be a SIGBUS.

    Raises:
        OSError: the disk is full, or the file cannot be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            # mdb.c: a cache line each, and one or two for the head of the table.
            os.posix_fallocate(file, 0, 64 * (readers_max + 2))
    finally:
        os.close(file)


def with_headroom(path: Path, least: int) -> int:
    """Return a map size for an LMDB file in which there is room beside what is in it already."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return least
    return max(least, (size + size // 4 + 0xFFFF) & ~0xFFFF)


def open_owned(path: Path, flags: int = 0) -> int:
    """Open a file that is to be locked, and that no child of this process has open.

    A ``flock`` belongs to the open file, which a forked child shares: one that outlives us, as the
    workers of a process pool do, would hold our locks for as long as it lives.

    Args:
        path: made where it is missing, unless it is a symlink.
        flags: beside those for that, and for writing.
    """
    flags |= os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, 0o600)
    _owned.add(file)
    return file


def close_owned(file: int) -> None:
    """Unlock and close such a file: by itself closing does not unlock what a child has open too."""
    _owned.discard(file)
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _part_with_owned() -> None:
    # The numbers stay taken: what the child closes, or tries to unlock, shall be nothing else's.
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for file in _owned:
        os.dup2(nothing, file, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_part_with_owned)


class FileLock:
    """An exclusive ``flock`` on a file of its own, with the holder's pid written into it.

    The kernel frees it when the holder dies, however it dies. The file stays: removing it would
    let two processes lock two files of one name.

    Args:
        note: a line for others to read, as long as the lock is held: see :meth:`note`.
    """

    def __init__(self, path: Path, note: str = "") -> None:
        self.path = path
        self._note = note
        self._fd: int | None = None
        self._taken_ns = 0

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(self) -> bool:
        """Take the lock if it is free, without a wait; tell whether it is ours now."""
        if self._fd is not None:
            return True
        fd = open_owned(self.path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            close_owned(fd)
            return False
        except BaseException:
            close_owned(fd)
            raise
        self._fd = fd
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the note
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n{self._note}".encode(), 0)
        self._taken_ns = os.fstat(fd).st_mtime_ns
        return True

    def ask(self) -> None:
        """Let the holder know that somebody waits for the lock: it sees :attr:`asked`."""
        with contextlib.suppress(OSError):  # then it is not told: the wait has a limit
            os.utime(self.path)

    @property
    def asked(self) -> bool:
        """Whether somebody has asked for the lock since it was taken."""
        return self._fd is not None and os.fstat(self._fd).st_mtime_ns != self._taken_ns

    def intact(self) -> bool:
        """Tell whether the lock is held, and its file has a name: a deleted one excludes nobody."""
        return self._fd is not None and os.fstat(self._fd).st_nlink > 0

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            if self._note:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, 0)
            close_owned(fd)

    def holder(self) -> int | None:
        """Return the pid that the last holder wrote, for messages."""
        pid = self._lines()[0].strip()
        return int(pid) if pid.isdigit() else None

    def note(self) -> str:
        """Return the line of the holder; that of one that died stays until the next one comes."""
        return self._lines()[1]

    def _lines(self) -> tuple[str, str]:
        try:
            first, _, second = self.path.read_text().partition("\n")
        except OSError:
            return "", ""
        return first, second

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
