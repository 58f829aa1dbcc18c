"""Testing: a user's real app in virtual time, with faults, in a moment.

``async with trickle.testing.run(app) as t:`` runs the app on a memory broker of its own, whatever
broker it names, on the virtual clock of the Trio run that it is in. Everything is real but the
broker and the clock: the lanes, the commits, the rebalances, the recovery of tables.
"""

from __future__ import annotations

from trickle.testing.simulation import Simulation, run

__all__ = ["Simulation", "run"]
