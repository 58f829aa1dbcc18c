r"""The tables' directories, decoded from bytes without a line of the code that wrote them.

A directory ``{data}/{app}/tables/{count}/{partition}`` (with ``.g1`` and so on for later
generations) is an LMDB environment. ``meta`` tells for each table how far it goes in which
changelog; ``table:{name}`` holds the pairs: the key and ``\x00``, to the value with a CRC of both.
Longer keys are not in the workload. Environments are read from copies, so that a look at a dead
worker's files changes nothing for its successor.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import lmdb

__all__ = ["Dump", "DumpError", "answer", "copy_tables", "environments", "read_environments"]

_DATA = "data.mdb"
_META_PAGES = 2
_NAME = re.compile(r"(\d+)(?:\.g(\d+))?")


class DumpError(Exception):
    """A store holds what it should not."""


class Dump(NamedTuple):
    """What a store says of one table.

    Attributes:
        table: its name.
        partition: the partition number.
        offset: how far it goes in its changelog; None: nothing was written yet.
        pairs: all of it.
    """

    table: str
    partition: int
    offset: int | None
    pairs: dict[bytes, bytes]


def environments(tables: Path) -> Iterator[tuple[int, Path]]:
    """Yield partition number and directory of each environment, the newest generations alone."""
    for count in sorted(tables.iterdir()) if tables.is_dir() else ():
        newest: dict[int, tuple[int, Path]] = {}
        for entry in count.iterdir() if count.is_dir() else ():
            match = _NAME.fullmatch(entry.name)
            if match and (entry / _DATA).is_file():
                generation = int(match[2] or 0)
                partition = int(match[1])
                if generation >= newest.get(partition, (-1, entry))[0]:
                    newest[partition] = (generation, entry)
        for partition, (_, path) in sorted(newest.items()):
            yield partition, path


def copy_tables(tables: Path, to: Path) -> None:
    """Copy the data of all environments, for a look at them later."""
    for partition, path in environments(tables):
        target = to / path.parent.name / str(partition)
        target.mkdir(parents=True)
        shutil.copyfile(path / _DATA, target / _DATA)


def read_environment(path: Path, partition: int) -> list[Dump]:
    """Return all tables of an environment.

    Raises:
        DumpError: a checksum is wrong, or what is there cannot be decoded.
    """
    size = (path / _DATA).stat().st_size
    if size < _META_PAGES * os.sysconf("SC_PAGE_SIZE"):
        return []  # emptied or cut by a fault, and not looked at since
    env: Any = lmdb.open(str(path), readonly=True, lock=False, max_dbs=512, create=False)
    try:
        if size < (env.info()["last_pgno"] + 1) * env.stat()["psize"]:
            return []  # cut likewise: reading it would end this process
        with env.begin() as txn:
            names = [bytes(key) for key, _ in txn.cursor()]
        if b"meta" not in names:
            return []
        meta = env.open_db(b"meta", create=False)
        dumps: list[Dump] = []
        for name in names:
            if name == b"meta":
                continue
            table = name.removeprefix(b"table:").decode()
            with env.begin() as txn:
                about = txn.get(name, db=meta)
            offset = None if about is None else cast("int", json.loads(about)["offset"])
            pairs = dict(_pairs(env, env.open_db(name, create=False), f"{path}, {table}"))
            dumps.append(Dump(table, partition, offset, pairs))
        return dumps
    finally:
        env.close()


def read_environments(found: Sequence[tuple[int, Path]]) -> Iterator[list[Dump] | DumpError]:
    """Yield all tables of each environment (partition, path), or why it cannot be read.

    They are read in a process of their own: LMDB ends the one that reads pages which are not there.
    """
    left = list(found)
    while left:
        main = f"import sys; from {__name__} import answer; answer(sys.argv[1:])"
        command = [sys.executable, "-c", main]
        command += [word for partition, path in left for word in (str(partition), str(path))]
        root = Path(__file__).parents[2]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
            assert process.stdout is not None
            while left:
                try:
                    told: list[Dump] | str = pickle.load(process.stdout)  # noqa: S301 - our own
                except EOFError:
                    break
                left.pop(0)
                yield DumpError(told) if isinstance(told, str) else told
        if left:
            _, path = left.pop(0)
            yield DumpError(f"{path}: its reader ended with exit code {process.returncode}")


def answer(words: Sequence[str]) -> None:
    """Be that process: write to stdout what each environment holds (partition, path, …)."""
    for partition, path in zip(words[::2], words[1::2], strict=True):
        try:
            found: list[Dump] | str = read_environment(Path(path), int(partition))
        except (DumpError, lmdb.Error) as error:
            found = str(error)
        pickle.dump(found, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _pairs(env: Any, db: Any, where: str) -> Iterator[tuple[bytes, bytes]]:
    with env.begin(db=db) as txn:
        for stored, raw in txn.cursor():
            if stored[-1:] != b"\x00":
                raise DumpError(f"{where}: the key {stored!r} has an unknown form")
            if zlib.crc32(raw[:-4], zlib.crc32(stored)).to_bytes(4, "little") != raw[-4:]:
                raise DumpError(f"{where}: the checksum of {stored!r} is wrong")
            yield bytes(stored[:-1]), bytes(raw[:-4])
