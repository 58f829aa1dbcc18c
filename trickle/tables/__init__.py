"""Tables: durable state that is part of each event's transaction."""

from trickle.tables.changes import Changes
from trickle.tables.keyed import KeyedShard
from trickle.tables.limits import CacheLimits
from trickle.tables.lookup import Found, find_key, find_keys
from trickle.tables.manager import TableManager
from trickle.tables.shard import Shard
from trickle.tables.standby import Standbys
from trickle.tables.table import HOLDER, Committed, Holder, Table, foreign_table
from trickle.tables.views import Views

__all__ = [
    "HOLDER",
    "CacheLimits",
    "Changes",
    "Committed",
    "Found",
    "Holder",
    "KeyedShard",
    "Shard",
    "Standbys",
    "Table",
    "TableManager",
    "Views",
    "find_key",
    "find_keys",
    "foreign_table",
]
