"""What the web server may see of a Run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from trickle.service import ServiceStatistics

__all__ = ["Health", "WebView"]


class Health(msgspec.Struct, frozen=True):
    """How a Run is.

    Attributes:
        live: it works; a process that is not live should be started again.
        ready: it has joined its group, and its shards are recovered.
        detail: one sentence for a person, without secrets.

    """

    live: bool
    ready: bool
    detail: str = ""


class WebView(Protocol):
    """The part of a Run that pages are made from."""

    def health(self) -> Health:
        """Return how it is now, without a wait."""
        ...

    def statistics(self) -> ServiceStatistics:
        """Return the tree of its services as it is now."""
        ...
