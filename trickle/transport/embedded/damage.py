"""Is the file on disk the one that LMDB left? Looked at before LMDB touches it.

LMDB maps its file and trusts it: one that was cut kills the reader by SIGBUS, one of zero bytes is
taken for new. So whoever opens the log while nobody else has it open first compares the file with
what its meta pages say, and walks its pages by py-lmdb's own verifier, which only reads.

A *torn tail* can be mended. LMDB never writes over a page of the last commit or of the one before:
its file ends in two meta pages' worth of history, txn N and txn N-1. Where pages of N are missing
at the file's end but N-1 is whole, the log goes back to N-1: that is the last whole commit. What N
said is gone from the disk already; its meta page is kept beside the file and a warning says so.
Anything worse is an error: a log is never discarded in silence.
"""

from __future__ import annotations

import importlib
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import lmdb

from trickle.exceptions import TransportError
from trickle.transport.embedded.format import KEY, DamagedChunk, unpack

__all__ = ["check_file", "explain", "stored_map_size"]

logger = logging.getLogger("trickle.transport.embedded")

VERIFY_BYTES_MAX = 256 << 20
"""A larger file is walked only on suspicion (the walk passes about 1 GiB a second)."""

_MAGIC = 0xBEEFC0DE
_PAGE_HEADER = 16
# pgno u64, pad u16, flags u16, lower/upper u32; then magic u32, version u32, address u64,
# mapsize u64, two databases of 48 bytes (the first starts with the page size, u32), last page u64,
# transaction id u64: mdb.c's MDB_page and MDB_meta of LMDB 0.9, 64 bit.
_META = struct.Struct("=II8xQ" + "I44x48x" + "QQ")
_BEGINNING = struct.pack("=QHHII", 0, 0, 0x08, 0, _MAGIC)  # page 0, flagged as a meta page


class _Meta(NamedTuple):
    magic: int
    version: int
    map_size: int
    page_size: int
    last_page: int
    txnid: int


def explain(path: Path, what: str) -> TransportError:
    """Return the error for a damaged log: the directory, what is wrong, what to do."""
    return TransportError(
        f"the embedded log in {path} is damaged: {what}. Nothing was changed. Restore the "
        "directory from a backup, or move it away and start with an empty log (broker= names it)"
    )


def _read_meta(file: int, slot: int, page_size: int) -> _Meta:
    data = os.pread(file, _META.size, slot * page_size + _PAGE_HEADER)
    if len(data) < _META.size:
        return _Meta(0, 0, 0, 0, 0, 0)
    return _Meta(*_META.unpack(data))


def stored_map_size(directory: Path) -> int:
    """Return the size of the map that the file was last written with."""
    file = os.open(directory / "data.mdb", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        first = _read_meta(file, 0, 1)
        return max(first.map_size, _read_meta(file, 1, first.page_size).map_size)
    finally:
        os.close(file)


def _is_beginning(file: int) -> bool:
    """Tell whether a file begins as LMDB's do, as far as it goes."""
    data = os.pread(file, len(_BEGINNING), 0)
    return _BEGINNING.startswith(data)


def _problems(path: Path) -> list[str]:
    """Walk all pages by py-lmdb's verifier (it has no type stubs)."""
    module = importlib.import_module("lmdb.verify")
    verify = cast("Callable[[str, bool], list[str]]", module.verify)
    cannot = cast("type[Exception]", module.VerifyError)
    try:
        return verify(str(path), False)
    except cannot as error:
        return [str(error)]


def _deep_problems(directory: Path, path: Path) -> list[str]:
    """Walk all pages, and if they are sound compare every record's checksum."""
    problems = _problems(path)
    if problems:
        return problems
    try:
        with lmdb.open(str(directory), readonly=True, lock=False, max_dbs=8) as env:
            records = env.open_db(b"log", create=False)
            with env.begin(records, buffers=True) as txn:
                for key, value in txn.cursor():
                    unpack(KEY.unpack(key)[2], value)
    except (lmdb.Error, DamagedChunk, struct.error) as error:
        return [f"records do not match their checksum {error}".rstrip()]
    return []


def check_file(directory: Path, *, expected: bool) -> None:
    """Check the log's file while nobody has it open; mend a torn tail.

    Args:
        expected: whether the directory says that a log was made here.

    Raises:
        TransportError: the file is damaged, missing, or not ours.
    """
    path = directory / "data.mdb"
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        if expected:
            raise explain(directory, "data.mdb is missing") from None
        return
    if size == 0:
        if expected:
            raise explain(directory, "data.mdb is empty") from None
        return
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not expected and size < 2 * os.sysconf("SC_PAGE_SIZE") and _is_beginning(file):
            path.unlink()  # the making of a log was cut short, before there was anything in it
            return
        _check_open_file(directory, path, file, size)
    finally:
        os.close(file)


def _check_open_file(directory: Path, path: Path, file: int, size: int) -> None:
    first = _read_meta(file, 0, 1)
    page_size = first.page_size
    if first.magic != _MAGIC or page_size not in {1 << n for n in range(9, 17)}:
        raise explain(directory, "data.mdb does not begin as an LMDB file of this machine does")
    metas = (first, _read_meta(file, 1, page_size))
    if metas[1].magic != _MAGIC:
        raise explain(directory, f"data.mdb was cut to {size} bytes")
    newest = 0 if metas[0].txnid > metas[1].txnid else 1
    wanted = (metas[newest].last_page + 1) * page_size
    if size >= wanted:
        problems = _problems(path) if size <= VERIFY_BYTES_MAX else []
        if problems:
            raise explain(directory, problems[0])
        return
    # Too short. The missing pages may be free ones, so that nothing is lost: the walk tells.
    # Zeros in their place keep LMDB from running into the end of the file.
    if wanted > max(4 * size, 1 << 34):
        raise explain(directory, f"data.mdb has {size} bytes, its last page ends at {wanted}")
    os.ftruncate(file, wanted)
    if not _deep_problems(directory, path):
        return
    torn = os.pread(file, page_size, newest * page_size)
    older = os.pread(file, page_size, (1 - newest) * page_size)
    os.pwrite(file, _rewound(older, newest, metas[1 - newest].txnid), newest * page_size)
    problems = _deep_problems(directory, path)
    if problems:
        os.pwrite(file, torn, newest * page_size)
        os.ftruncate(file, size)
        raise explain(directory, f"data.mdb was cut to {size} of {wanted} bytes ({problems[0]})")
    (directory / f"torn-{metas[newest].txnid}.meta").write_bytes(torn)
    os.fsync(file)
    logger.warning(
        "the embedded log in %s had a torn tail: %d of %d bytes were there, and the last commit "
        "(transaction %d) is not whole; the log continues from the commit before it",
        directory, size, wanted, metas[newest].txnid,
    )  # fmt: skip


def _rewound(older: bytes, slot: int, txnid: int) -> bytes:
    """Return the older meta page dressed as one more commit back, for the newer one's slot.

    LMDB takes the meta with the higher transaction id, and slot N & 1 holds transaction N.
    """
    page = bytearray(older)
    struct.pack_into("=Q", page, 0, slot)
    at = _PAGE_HEADER + _META.size - 8
    struct.pack_into("=Q", page, at, max(txnid - 1, 0))
    return bytes(page)
