"""`AUTH=off`: callers of this machine need no token. Who may be such a caller, and who may not.

The server listens on a loopback address only, so other machines can't reach it. But the browser
of this machine can be sent here by any page: from a foreign page with a form or a fetch, or under
a foreign name that resolves to this machine. Runs execute code, so both are refused, whatever
they ask for. A page from another port of this machine is foreign as well: a development server
there shows what others wrote.
"""

from __future__ import annotations

import re

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.config import Settings, is_loopback
from app.errors import Forbidden
from app.routes.failures import error_answer

_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9.-]{1,253}))(?::\d{1,5})?")
_OWN_PAGES = frozenset({"same-origin", "none"})
"""What `Sec-Fetch-Site` says of our own pages, and of addresses that somebody typed."""

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_OPEN_PATH = "/healthz"
"""Says nothing of anybody; probes may ask under any name."""


class LocalOnly:
    """ASGI middleware for `AUTH=off`: every HTTP route. A WebSocket's route closes it with a code."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] == "http" and scope["path"] != _OPEN_PATH:
            try:
                needs_no_token(HTTPConnection(scope), self._settings)
            except Forbidden as error:
                await error_answer(error.status, error.code, error.message)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def needs_no_token(conn: HTTPConnection, settings: Settings) -> bool:
    """Whether this caller is let in without a token.

    Raises:
        Forbidden: tokens are off, but a page that is not of this server sent the browser here.
    """
    if settings.auth == "on":
        return False
    hosts = conn.headers.getlist("host")
    if len(hosts) != 1 or not _is_local(hosts[0]):
        raise Forbidden("With AUTH=off this server is reached as 127.0.0.1 or localhost only.")
    if not _from_known_page(conn, settings):
        raise Forbidden("With AUTH=off pages of other origins may not call this server; see CORS_ORIGINS.")
    return True


def _is_local(host: str) -> bool:
    found = _AUTHORITY.fullmatch(host.lower())
    return found is not None and is_loopback(found[1] or found[2])


def _from_known_page(conn: HTTPConnection, settings: Settings) -> bool:
    """Browsers name the origin, or, where they do not (GET), how far it is; other programs neither."""
    origins = conn.headers.getlist("origin")
    if origins:
        known = {_own_origin(conn), *(each.strip() for each in settings.cors_origins.split(","))}
        return len(origins) == 1 and origins[0] in known - {"", "*"}
    return all(site.lower() in _OWN_PAGES for site in conn.headers.getlist("sec-fetch-site"))


def _own_origin(conn: HTTPConnection) -> str:
    """Return the origin of this server's own pages, as the caller reaches it."""
    scheme: str = conn.scope["scheme"].replace("ws", "http")
    host = conn.headers["host"].lower().removesuffix(_DEFAULT_PORTS.get(scheme, ""))
    return f"{scheme}://{host}"
