"""The broker in memory: for tests, simulation, and programs that need no durability.

``memory://name`` is one broker of this process, for as long as the process lives; the testing
module makes private ones. It has no thread and passes no time, so it works under Trio's virtual
clock. It belongs to one Trio run at a time.

* :mod:`.log`: partitions, retention and compaction: plain data
* :mod:`.group`: the coordinator's state machine: plain data
* :mod:`.broker`: the two together, transactions' effects, and the faults
* :mod:`.producer`, :mod:`.consumer`, :mod:`.transport`: the contract's clients
"""

from __future__ import annotations

from trickle.transport.memory.broker import CommitFault, MemoryBroker
from trickle.transport.memory.group import MemoryMember
from trickle.transport.memory.transport import MemoryTransport, open_transport

__all__ = ["CommitFault", "MemoryBroker", "MemoryMember", "MemoryTransport", "open_transport"]
