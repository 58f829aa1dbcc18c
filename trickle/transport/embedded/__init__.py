"""``lmdb://``: the embedded log, a durable broker in a directory, for one machine.

It needs nothing installed and no server: each process opens the directory, and LMDB and file locks
keep them apart. Kafka's words mean what they mean there (topics, partitions, offsets with gaps,
consumer groups, transactional ids, watermarks, retention, compaction).

What is what, in the order of a record's way:

* :mod:`.transport`: the contract's face.
* :mod:`.producer` (transactions), :mod:`.plain`; :mod:`.stager`, :mod:`.staging`: records become
  chunks in memory.
* :mod:`.writer`, :mod:`.gate`: the one thread that writes, and whose turn it is among processes.
* :mod:`.environment`, :mod:`.format`, :mod:`.log`: LMDB, what is in it, and what is done to it.
* :mod:`.wake`: commits wake readers.
* :mod:`.consumer`, :mod:`.group`: membership by file locks; :mod:`.reader`, :mod:`.batch`: reading.
* :mod:`.admin`; :mod:`.upkeep`: retention and compaction; :mod:`.damage`: files that were cut.
* :mod:`.hub`: what one process shares.

What to know:

* Every commit is synced to disk. A loop that awaits each ``send`` is as slow as the disk's sync;
  sends from many tasks at once share one.
* A process that is stopped (SIGSTOP) keeps its partitions; stopped inside a write, it stops all
  writers, which end with an error that names its pid.
* A topic has one partition unless it is declared with more.
"""

from __future__ import annotations

from trickle.transport.embedded.transport import open_transport

__all__ = ["open_transport"]
