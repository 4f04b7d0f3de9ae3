"""`AUTH=off`: callers of this machine need no token. Who may be such a caller, and who may not.

The server listens on a loopback address only, so other machines can't reach it. But the browser
of this machine can be sent here by any page: from a foreign page with a form or a fetch, or under
a foreign name that resolves to this machine. Runs execute code, so both are refused.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from app.config import Settings, is_loopback
from app.errors import Forbidden


def needs_no_token(conn: HTTPConnection, settings: Settings) -> bool:
    """Whether this caller is let in without a token.

    Raises:
        Forbidden: tokens are off, but a page that is not of this machine sent the browser here.
    """
    if settings.auth == "on":
        return False
    if not is_loopback(_host("//" + conn.headers.get("host", ""))):
        raise Forbidden("With AUTH=off this server is reached as 127.0.0.1 or localhost only.")
    origin = conn.headers.get("origin")
    foreign = (
        conn.headers.get("sec-fetch-site") == "cross-site" if origin is None else not _known(origin, settings)
    )
    if foreign:
        raise Forbidden("With AUTH=off pages of other origins may not call this server; see CORS_ORIGINS.")
    return True


def _known(origin: str, settings: Settings) -> bool:
    return is_loopback(_host(origin)) or origin in {each.strip() for each in settings.cors_origins.split(",")}


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
