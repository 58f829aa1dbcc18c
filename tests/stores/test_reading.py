"""A store that is only read."""

from __future__ import annotations

from pathlib import Path

from tests.stores.test_lmdb import cut, fill
from trickle.stores.reading import StoredPartition


async def test_what_was_found_sound_is_examined_again_once_it_changes(tmp_path: Path) -> None:
    """To examine it takes a checksum of all of it, and the lock that a worker wants."""
    path = await fill(tmp_path / "t", 10)
    known = StoredPartition(tmp_path / "t", 1, 0, "t")
    for _ in range(2):
        with known.open() as table:
            assert table is not None
            assert table.count() == 10
        (path / "state.json").unlink(missing_ok=True)  # without which nobody trusts it
    with StoredPartition(tmp_path / "t", 1, 0, "t").open() as table:
        assert table is None
    cut(path / "data.mdb")
    with known.open() as table:
        assert table is None
