"""The application that the server serves: the pages together, inside the guard."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from trickle.web.guard import ASGI, Guard, Limits
from trickle.web.health import health_pages
from trickle.web.responses import json_response

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework
    from quart import Response

    from trickle.web.view import WebView

__all__ = ["make_app"]

logger = logging.getLogger("trickle.web")


def make_app(
    view: WebView, hosts: frozenset[str] | None, token: str | None, limits: Limits
) -> ASGIFramework:
    """Return the ASGI application of one Run; hosts, token and limits are the guard's."""
    # No folder of its own: nothing is served from files.
    app = QuartTrio("trickle.web", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = limits.body_bytes
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _page_error)
    app.register_blueprint(health_pages(view))
    # Two spellings of ASGI's types meet here: hypercorn's TypedDicts and our plain mappings.
    guarded = Guard(cast("ASGI", app), hosts=hosts, token=token, limits=limits)
    return cast("ASGIFramework", guarded)


async def _http_error(error: HTTPException) -> Response:
    return json_response({"error": error.name.lower()}, status=error.code or 500)


async def _page_error(error: Exception) -> Response:
    logger.error("a page failed", exc_info=error)
    return json_response({"error": "the page failed: the server's log says why"}, status=500)
