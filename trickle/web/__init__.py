"""The local web server that a Run starts: pages and answers about the running instance.

It looks at the Run through a :class:`WebView`, a Protocol of the few things that it shows, so
nothing here knows what a Run is. What every request passes first is in :mod:`.guard`; what binds
and serves is in :mod:`.server`; each family of pages has a module of its own.
"""

from __future__ import annotations

from trickle.web.server import Web
from trickle.web.view import Health, WebView

__all__ = ["Health", "Web", "WebView"]
