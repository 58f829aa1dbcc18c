"""Tables: durable state that is part of each event's transaction."""

from trickle.tables.manager import TableManager
from trickle.tables.shard import CacheLimits, Changes, Shard
from trickle.tables.table import HOLDER, Holder, Table

__all__ = ["HOLDER", "CacheLimits", "Changes", "Holder", "Shard", "Table", "TableManager"]
