"""Inside: how code in the block of `async with app.run():` finds the Run of that app.

Several apps may run in one program, the block of one in the block of another. A topic is sent to,
and a table is read, where its own app runs; what belongs to none of them goes to the innermost.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from trickle.context import OUTLET, Outlet, Outlets
from trickle.tables import HOLDER, Committed, Holder, Table, foreign_table

__all__ = ["inside"]


class _Holders:
    """The tables of all apps that run around a block; a Holder itself."""

    def __init__(self, innermost: Holder | None, by_app: Mapping[object, Holder | None]) -> None:
        self.innermost = innermost
        self.by_app = by_app

    def shards_of(self, table: Table[Any, Any]) -> Sequence[Committed]:
        holder = self.by_app.get(table.app, self.innermost)
        if holder is None:
            raise foreign_table(table)
        return holder.shards_of(table)


@contextmanager
def inside(app: object, outlet: Outlet | None, holder: Holder | None) -> Generator[None]:
    """Let what the block sends and reads find the Run of an app.

    Args:
        app: what its topics and tables name as theirs; not its id, which another may have as well.
        outlet: the Run's way out.
        holder: its tables; None where it has none.
    """
    outer, around = OUTLET.get(), HOLDER.get()
    outlets = dict(outer.by_app) if isinstance(outer, Outlets) else {}
    holders = dict(around.by_app) if isinstance(around, _Holders) else {}
    if outlet is not None:
        outlets[app] = outlet
    holders[app] = holder
    sends = OUTLET.set(Outlets(outlet, outlets))
    reads = HOLDER.set(_Holders(holder, holders))
    try:
        yield
    finally:
        OUTLET.reset(sends)
        HOLDER.reset(reads)
