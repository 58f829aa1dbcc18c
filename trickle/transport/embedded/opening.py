"""How a log's files are opened: the lock, the map, and the databases in it.

Other processes may write meanwhile: a map that was large enough when it was opened may be too
small when the first transaction begins. That is no damage; the larger one is adopted.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import msgspec

from trickle.exceptions import BrokerUnavailable, ConfigurationError, TransportError
from trickle.transport.embedded.damage import check_file, explain, stored_map_size
from trickle.transport.embedded.format import Marker
from trickle.transport.embedded.gate import Gate
from trickle.utils.files import (
    ForeignPathError,
    close_owned,
    open_owned,
    private_directory,
    reserve_readers,
    with_headroom,
)

if TYPE_CHECKING:
    from lmdb import Transaction
    from lmdb import _Database as Database  # pyright: ignore[reportPrivateUsage] - its only name

    Databases = tuple[Database, Database, Database, Database]

__all__ = [
    "MARKER",
    "READERS_MAX",
    "adopt_map",
    "check_address_space",
    "is_made",
    "is_no_room",
    "lock_for_use",
    "no_room",
    "open_databases",
    "open_lmdb",
]

READERS_MAX = 1024

MARKER = b"f"
"""The key of the format's marker, in ``meta``."""

_NAMES = (b"meta", b"heads", b"log", b"offsets")

_GROWTHS_MAX = 8
"""As often may others make the map larger while one transaction begins; each doubles it."""


def is_no_room(error: Exception) -> bool:
    """Whether an error says that the disk is full, or a file as large as it may be."""
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    return isinstance(error, lmdb.DiskError) or code in {
        errno.ENOSPC,
        errno.EFBIG,
        errno.EDQUOT,
        errno.EIO,  # what LMDB makes of a write that was cut short
    }


def no_room(directory: Path, error: Exception) -> TransportError:
    """Return the sentence for such an error."""
    return TransportError(
        f"the embedded log in {directory} cannot be written ({error}): nothing of the transaction "
        "was kept. Make room on its disk, or raise the limit on file size"
    )


def lock_for_use(directory: Path, timeout: float) -> int:
    """Take the lock that says "in use"; where nobody else has it, check the file first.

    The lock is shared by all processes that have the log open, and exclusive during the check.
    """
    try:
        private_directory(directory)
        if directory.stat().st_uid != os.getuid():
            raise ForeignPathError(errno.EPERM, "belongs to another user", str(directory))
        file = open_owned(directory / "open.lock")
    except OSError as error:
        if is_no_room(error):
            raise no_room(directory, error) from error
        raise ConfigurationError(
            f"broker='lmdb://{directory}' cannot be used ({error.strerror}): name a directory "
            "that this user may write, by broker=, or by data_dir= where broker= is left out"
        ) from error
    try:
        deadline = time.monotonic() + timeout
        while True:
            if _flock(file, fcntl.LOCK_EX):
                check_file(directory, expected=(directory / "FORMAT").exists())
            if _flock(file, fcntl.LOCK_SH):
                return file
            if time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"another process has been checking the embedded log in {directory} for "
                    f"{timeout:g} s: wait for it, or raise broker_timeout="
                )
            time.sleep(0.01)
    except BaseException:
        close_owned(file)
        raise


def _flock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_address_space(directory: Path, size: int) -> None:
    """Try whether so much can be mapped: LMDB gives up the old map before it makes the new one.

    Raises:
        TransportError: it cannot.
    """
    try:
        anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mmap.mmap(-1, size, flags=anonymous, prot=mmap.PROT_READ).close()
    except (OSError, OverflowError, ValueError) as error:
        raise TransportError(
            f"the embedded log in {directory} finds no {size} bytes of address space to "
            f"grow into ({error}): raise its limit (ulimit -v)"
        ) from error


def adopt_map(env: lmdb.Environment, directory: Path) -> None:
    """Map what another process has made larger; no transaction of this one may be open."""
    check_address_space(directory, stored_map_size(directory))
    env.set_mapsize(0)


def _begin(env: lmdb.Environment, directory: Path, *, write: bool) -> Transaction[bytes]:
    """Begin a transaction, in a larger map where others have written since it was opened."""
    for _ in range(_GROWTHS_MAX):
        try:
            return env.begin(write=write)
        except lmdb.MapResizedError:
            adopt_map(env, directory)
    return env.begin(write=write)


def open_lmdb(directory: Path, map_bytes: int) -> lmdb.Environment:
    """Open the environment, with a map that has room beside what is in the file already."""
    map_bytes = with_headroom(directory / "data.mdb", map_bytes)
    for name in ("data.mdb", "lock.mdb"):
        path = directory / name
        if path.is_symlink() or (path.exists() and not stat.S_ISREG(path.lstat().st_mode)):
            raise ConfigurationError(
                f"broker='lmdb://{directory}' cannot be used: {name} in it is no plain file"
            )
    try:
        reserve_readers(directory / "lock.mdb", READERS_MAX)
        env = lmdb.open(
            str(directory),
            map_size=map_bytes,
            max_dbs=8,
            max_readers=READERS_MAX,
            mode=0o600,
            meminit=False,
            max_spare_txns=4,
        )
    except (lmdb.Error, OSError) as error:
        if is_no_room(error):
            raise no_room(directory, error) from error
        code = getattr(error, "code", 0) or getattr(error, "errno", 0)
        if code in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise ConfigurationError(
                f"broker='lmdb://{directory}' cannot be used ({error}): name a directory that "
                "this user may write"
            ) from error
        if code == errno.ENOMEM:
            raise ConfigurationError(
                f"the embedded log in {directory} finds no {map_bytes} bytes of address space: "
                "raise its limit (ulimit -v), or lower the client option map_size"
            ) from error
        raise explain(directory, str(error)) from error
    return env


def is_made(env: lmdb.Environment, directory: Path) -> bool:
    """Tell whether the named databases are there, and nobody else's.

    By a read transaction: a write transaction would wait for LMDB's lock, without a limit.
    """
    try:
        with _begin(env, directory, write=False) as txn:
            names = {bytes(name) for name, _ in txn.cursor()}
    except lmdb.Error as error:
        raise explain(directory, str(error)) from error
    if names - set(_NAMES):
        raise ConfigurationError(
            f"broker='lmdb://{directory}' cannot be used: it holds another program's "
            "LMDB database. Name another directory"
        )
    return bool(names)


def open_databases(
    env: lmdb.Environment, directory: Path, timeout: float, *, made: bool
) -> Databases:
    """Open the named databases; in a new log make them and the marker, in one transaction.

    Handles opened in a read transaction end with it, so this takes a write transaction, behind the
    gate, where one that changes nothing costs nothing.
    """
    if not made and (directory / "FORMAT").exists():
        raise explain(directory, "data.mdb is empty, where FORMAT speaks of a log")
    gate = Gate(directory)
    deadline = time.monotonic() + timeout
    if not gate.enter(lambda: time.monotonic() < deadline):
        raise BrokerUnavailable(
            f"the embedded log in {directory} could not be opened for {timeout:g} s: process "
            f"{gate.holder()} is inside a write"
        )
    try:
        with _begin(env, directory, write=True) as txn:
            meta, heads, log, offsets = (env.open_db(name, txn=txn) for name in _NAMES)
            # Another process may have been faster.
            if not made and txn.get(MARKER, db=meta) is None:
                marker = Marker(identity=secrets.token_hex(8))
                txn.put(MARKER, msgspec.json.encode(marker), db=meta)
    except lmdb.Error as error:
        if made:
            raise explain(directory, str(error)) from error
        if is_no_room(error):
            raise no_room(directory, error) from error
        raise TransportError(f"no embedded log can be made in {directory}: {error}") from error
    finally:
        gate.leave()
    return meta, heads, log, offsets
