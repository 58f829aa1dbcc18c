"""Where an environment lives on disk: its directory, the lock on it, and whether to trust it.

The directory of partition 3 of 8 is ``{root}/8/3``. Beside it lies the lock ``3.lock``, which is
never removed. Where a live process holds the lock for longer than one waits, a new *generation*
is made beside it, ``3.g1`` with ``3.g1.lock``; the newest one is used, older ones are removed once
they are free.

Environments are written without sync, as the changelog can rebuild them. So each has a *state*
file: while it is open, the boot id of the machine; once it was closed in order, the size and the
checksum of its data. On opening,

* one that was closed in order must have that checksum still;
* one whose process died is walked page by page, by a program that trusts nothing, and then every
  record's own checksum is compared: LMDB itself would end by a signal on some damages;
* one that was open when the machine stopped is not trusted: what reached the disk is unknown.

What is not trusted is set aside, as ``3.damaged`` (the last one is kept, for a look at it).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

# The walker is in pure Python, and ships with py-lmdb since 3.0.
from lmdb.verify import (  # pyright: ignore[reportMissingTypeStubs]
    VerifyError,
    verify,  # pyright: ignore[reportUnknownVariableType]
)

from trickle.stores.contract import FORMAT_VERSION, OLD_S
from trickle.utils.files import FileLock, private_directory

__all__ = [
    "DATA_FILE",
    "Home",
    "Verdict",
    "examine",
    "generations",
    "is_old",
    "lock_free",
    "lock_home",
    "mark_closed",
    "mark_open",
    "set_aside",
]

logger = logging.getLogger("trickle.stores")

DATA_FILE = "data.mdb"
_STATE_FILE = "state.json"
_NAME = re.compile(r"(\d+)(?:\.g(\d+))?")
_CHUNK_BYTES = 1 << 20
_LOCK_POLL = 0.05


class Home:
    """One generation of one environment's directory, and its lock."""

    def __init__(self, parent: Path, partition: int, generation: int) -> None:
        self.generation = generation
        name = f"{partition}.g{generation}" if generation else str(partition)
        self.path = parent / name
        self.lock = FileLock(parent / f"{name}.lock")

    @property
    def data_file(self) -> Path:
        """The file that LMDB keeps everything in."""
        return self.path / DATA_FILE

    def make(self) -> None:
        """Make the directory where it is missing."""
        private_directory(self.path)

    def remove(self) -> None:
        """Remove the directory with all that is in it; the lock must be held."""
        shutil.rmtree(self.path, ignore_errors=True)


def generations(parent: Path, partition: int) -> list[Home]:
    """Return the generations of a partition's environment, the newest first; at least one."""
    found = {0}
    for entry in os.scandir(parent):
        match = _NAME.fullmatch(entry.name)
        if match and int(match[1]) == partition and entry.is_dir(follow_symlinks=False):
            found.add(int(match[2] or 0))
    return [Home(parent, partition, generation) for generation in sorted(found, reverse=True)]


async def lock_home(parent: Path, partition: int, timeout: float) -> Home:
    """Lock the newest generation, or make a newer one where it stays locked for so many seconds."""
    found = generations(parent, partition)
    newest = found[0]
    with trio.move_on_after(timeout):
        while not newest.lock.acquire():
            newest.lock.ask()  # who can spare it gives it back
            await trio.sleep(_LOCK_POLL)
    home = newest
    while not home.lock.acquire():
        logger.warning(
            "the tables of partition %d in %s are locked by process %s: they are rebuilt "
            "beside them; give each worker its own data_dir to avoid that",
            partition, home.path, home.lock.holder() or "(unknown)",
        )  # fmt: skip
        home = Home(newest.path.parent, partition, home.generation + 1)
    _remove_older(found, home)
    return home


def lock_free(parent: Path, partition: int) -> Home | None:
    """Lock the newest generation, unless somebody holds it."""
    found = generations(parent, partition)
    if not found[0].lock.acquire():
        return None
    _remove_older(found, found[0])
    return found[0]


def _remove_older(found: list[Home], home: Home) -> None:
    for older in found:
        if older.generation < home.generation and older.lock.acquire():
            older.remove()
            older.lock.release()


class _State(msgspec.Struct):
    """What the state file says."""

    format: int
    boot: str
    closed: bool = False
    size: int = 0
    crc32: int = 0


def mark_open(path: Path) -> None:
    """Note that an environment is open, before it is written to."""
    _write_state(path, _State(FORMAT_VERSION, _boot_id()))


def mark_closed(path: Path) -> None:
    """Note that an environment was closed in order, and what its data were then."""
    data = path / DATA_FILE
    _write_state(
        path, _State(FORMAT_VERSION, _boot_id(), True, data.stat().st_size, _checksum(data))
    )


class Verdict(NamedTuple):
    """Whether an environment's data may be opened.

    Attributes:
        damage: why not; None where they may, or where there are none yet.
        records: they may, but every record is to be compared with its checksum first.
    """

    damage: str | None
    records: bool = False


def examine(path: Path) -> Verdict:
    """Look at an environment's directory before it is opened; the lock must be held."""
    data = path / DATA_FILE
    if not data.exists():
        return Verdict(None)
    size = data.stat().st_size
    if size == 0:
        return Verdict("its data file is empty")
    try:
        state = msgspec.json.decode((path / _STATE_FILE).read_bytes(), type=_State)
    except FileNotFoundError:
        return Verdict("its state file is missing")
    except (OSError, msgspec.DecodeError) as error:
        return Verdict(f"its state file cannot be read ({error})")
    if state.format != FORMAT_VERSION:
        return Verdict(f"it has format {state.format}, this program has format {FORMAT_VERSION}")
    if state.closed:
        if size != state.size:
            return Verdict(f"its data file has {size:,} bytes, and was closed with {state.size:,}")
        if _checksum(data) != state.crc32:
            return Verdict("its data have changed since it was closed")
        return Verdict(None)
    if state.boot != _boot_id():
        return Verdict("the machine stopped while it was open")
    damage = _walk(path)
    return Verdict(damage, records=damage is None)


def set_aside(path: Path) -> Path:
    """Move a directory out of the way, in the place of the one before; return where to."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    return aside


def _walk(path: Path) -> str | None:
    try:
        problems: list[str] = verify(str(path))  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownVariableType]
    except VerifyError as error:
        return f"its data file is not LMDB's ({error})"
    return f"its data file is damaged ({problems[0]})" if problems else None


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _boot_id() -> str:
    """Return what changes when the machine starts; nothing where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _write_state(path: Path, state: _State) -> None:
    fresh = path / f"{_STATE_FILE}.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, msgspec.json.encode(state))
        os.fsync(fd)
    finally:
        os.close(fd)
    fresh.rename(path / _STATE_FILE)


def is_old(file: Path) -> bool:
    """Tell whether a data file was written last longer ago than deletions are remembered."""
    try:
        written = file.stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - written > OLD_S
