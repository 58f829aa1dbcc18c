"""Whether this worker is in its group, and alone there with its program."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from trickle.exceptions import BrokerUnavailable, TransportError
from trickle.namesakes import Namesakes
from trickle.positions import Positions
from trickle.transport.contract import Admin, ConsumerClient, ConsumerOptions
from trickle.types import TopicPartition

__all__ = ["Membership"]

logger = logging.getLogger("trickle.consumer")


class Membership:
    """Looks at the group, as often as it is asked to.

    Args:
        admin: shows the group.
        options: how it was joined.
        client: the member.
        namesakes: tells of other programs with this app's id.

    Attributes:
        away: the group could not be looked at since; or this process stood still.
    """

    def __init__(
        self, admin: Admin, options: ConsumerOptions, client: ConsumerClient, namesakes: Namesakes
    ) -> None:
        self._admin = admin
        self._options = options
        self._client = client
        self._namesakes = namesakes
        self._may_look = True
        self._placed_at = trio.current_time()  # when this worker was last seen in its group
        self._renewed = False
        self.away = False

    async def look(self, committed: Mapping[TopicPartition, Positions]) -> None:
        """See that this worker is in its group, or soon again, and who else is.

        Args:
            committed: positions of what it holds.

        Raises:
            BrokerUnavailable: nothing can be seen now.
            TransportError: the broker is well, and neither this client nor a new one comes back.
        """
        try:
            members = await self._admin.members(self._options.group)
            await self._namesakes.look(committed, members)
        except BrokerUnavailable:
            self.away = True
            raise
        except TransportError as error:  # not allowed, most likely
            self.away = True
            if self._may_look:
                logger.info("the group is not looked at: %s", error)
            self._may_look = False
            return
        self._check_place(members, holds=bool(committed))

    def _check_place(self, members: Mapping[str, object], *, holds: bool) -> None:
        """Give the member time to come back, then a new client, then up.

        Its patience begins anew where the group could not be looked at for a while: the broker was
        away, or the process stood still, and the client needs its time to come back.
        """
        now = trio.current_time()
        away, self.away = self.away, False
        name = self._client.member_id
        # Without a name it is joining for the first time.
        if away or holds or not name or name in members:
            self._placed_at = now
            self._renewed = False
        patience = 2 * self._options.rebalance_timeout
        out = now - self._placed_at
        if out > patience:
            raise TransportError(
                f"this worker is in group {self._options.group!r} no more, and its client has not "
                f"come back for {patience:.0f} s, though the broker answers: it ends, so that one "
                "that is started again can take its place"
            )
        if out > patience / 2 and not self._renewed:
            self._renewed = True
            logger.warning(
                "this worker is in group %r no more, and its client has not come back for %.0f s, "
                "though the broker answers: it joins with a new client", self._options.group, out,
            )  # fmt: skip
            self._client.renew()
