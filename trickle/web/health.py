"""``/health/live`` and ``/health/ready``: what a supervisor or a load balancer asks.

*Live*: a worker that is not should be started again. *Ready*: it has joined its group and its
shards are recovered. Either is 200 or 503, with a small JSON document that says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Blueprint, Response

from trickle.web.responses import json_response

if TYPE_CHECKING:
    from trickle.web.view import WebView

__all__ = ["health_pages"]


def health_pages(view: WebView) -> Blueprint:
    """Return the pages about a Run's health."""
    pages = Blueprint("health", __name__)

    @pages.get("/health/live")
    async def live() -> Response:  # pyright: ignore[reportUnusedFunction]
        health = view.health()
        return json_response({"live": health.live, "detail": health.detail}, ok=health.live)

    @pages.get("/health/ready")
    async def ready() -> Response:  # pyright: ignore[reportUnusedFunction]
        health = view.health()
        return json_response({"ready": health.ready, "detail": health.detail}, ok=health.ready)

    return pages
