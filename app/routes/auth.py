"""What every route asks for before it does anything: who is calling, and which run they mean.

Owns authentication (bearer tokens, stream tokens) and the look-up of a run in a path, so
that no route can forget either. A run that is unknown, malformed or another user's is the
same 404. Works for HTTP and WebSocket alike.

`AUTH=off`: callers of this machine need no token. Who may be such a caller, and who may not.

The server listens on a loopback address only, so other machines can't reach it. But the browser
of this machine can be sent here by any page: from a foreign page with a form or a fetch, or under
a foreign name that resolves to this machine. Runs execute code, so both are refused, whatever
they ask for. A page from another port of this machine is foreign as well: a development server
there shows what others wrote.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Path, Query
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.config import ApiSettings, is_loopback
from app.core.clock import now_us
from app.core.errors import Forbidden, NotFound, StorageError, Unauthorized
from app.core.models import Run
from app.plan.run_fields import RUN_EXAMPLE
from app.routes.errors import error_answer
from app.runs.services import ADMIN_USER, RUN_ID, Principal, Services


def services(conn: HTTPConnection) -> Services:
    """Return the services of the app that serves this request."""
    return conn.app.state.services


async def _shared(conn: HTTPConnection) -> Services:
    """Be a dependency: one that is not `async` costs a trip into a thread per request."""
    return services(conn)


CurrentServices = Annotated[Services, Depends(_shared)]


async def _principal(token: str, services: Services) -> Principal:
    bootstrap = services.settings.api.token
    # Starlette decodes headers as latin-1; this gives back the bytes that were sent.
    if bootstrap is not None and hmac.compare_digest(
        token.encode("latin-1", "replace"), bootstrap.get_secret_value().encode()
    ):
        return Principal(ADMIN_USER, "admin")
    found = await services.tokens.find(token, now_us())
    if found is None:
        raise Unauthorized("This token is unknown, revoked or expired.")
    return Principal(found.user_id, found.scope, found.token_id, found.run_id, found.made_by)


async def current_user(conn: HTTPConnection, token: str | None, services: Services) -> Principal:
    """Return the caller; `Unauthorized` without a valid token of scope user or admin."""
    if needs_no_token(conn, services.settings.api) and token is None:
        return Principal(ADMIN_USER, "admin")
    if token is None:
        raise Unauthorized("Send a token: `Authorization: Bearer <token>`.")
    principal = await _principal(token, services)
    if principal.scope == "stream":
        raise Unauthorized("A stream token opens only the stream of its own run.")
    return principal


async def stream_user(conn: HTTPConnection, token: str | None, services: Services) -> Principal:
    """Return the caller of a stream route, where `?access_token=` may carry a stream token."""
    open_to_all = needs_no_token(conn, services.settings.api)
    if token is not None:
        return await _principal(token, services)
    query = conn.query_params.get("access_token")
    if not query and open_to_all:
        return Principal(ADMIN_USER, "admin")
    if not query:
        raise Unauthorized("Send `Authorization: Bearer <token>`, or a stream token as `?access_token=`.")
    principal = await _principal(query, services)
    if principal.scope != "stream":
        raise Unauthorized("Only a stream token may be in a URL; POST …/stream-token makes one.")
    return principal


class _Bearer(SecurityBase):
    """`Authorization: Bearer <token>`, as OpenAPI knows it, and who that is: `who` gets None without one.

    One dependency instead of one each for header, services and caller: FastAPI works on each of
    them anew with every request, which cost more than the check of a token.
    """

    def __init__(self, who: Callable[[HTTPConnection, str | None, Services], Awaitable[Principal]]) -> None:
        self.model = BearerModel(description="A token of `tailrun token create`, or `API_TOKEN`.")
        self.scheme_name = "bearer"
        self._who = who

    async def __call__(self, conn: HTTPConnection) -> Principal:
        scheme, _, token = conn.headers.get("authorization", "").partition(" ")
        bearer = token.strip() or None if scheme.lower() == "bearer" else None
        return await self._who(conn, bearer, services(conn))


CurrentUser = Annotated[Principal, Depends(_Bearer(current_user))]
StreamUser = Annotated[Principal, Depends(_Bearer(stream_user))]
"""Like `CurrentUser`, also a stream token: check `scope` before anything but reading."""


async def admin(principal: CurrentUser) -> Principal:
    """Return the caller if they are an admin; `Forbidden` otherwise."""
    if not principal.admin:
        raise Forbidden("This needs a token of scope admin.")
    return principal


Admin = Annotated[Principal, Depends(admin)]


async def admin_calls(conn: HTTPConnection, services: Services) -> bool:
    """Whether an admin is calling where no token is needed; no if that can't be found out just now."""
    try:
        return (await _Bearer(current_user)(conn)).admin
    except (Forbidden, Unauthorized, StorageError):
        return False


async def find_run(services: Services, principal: Principal, run_id: str) -> Run:
    """Return a run that the caller may see; `NotFound` for every other."""
    known = run_id.lower()  # some tools write ids in capitals
    run = await services.runs.get(known) if RUN_ID.fullmatch(known) else None
    if run is None or not _may_see(principal, run):
        raise NotFound(f"There is no run {run_id[:64]!r}.")
    return run


def _may_see(principal: Principal, run: Run) -> bool:
    if principal.scope == "stream":
        return principal.run_id == run.run_id
    return principal.admin or principal.user_id == run.user_id


RunId = Annotated[str, Path(description="A run's id.", examples=["0b5c8a52-5c0e-4a55-9d0c-7f4f3f6e2a11"])]


async def own_run(run_id: RunId, principal: CurrentUser, services: CurrentServices) -> Run:
    """Return the run that the path names, if it is the caller's (an admin sees all)."""
    return await find_run(services, principal, run_id)


async def stream_run(run_id: RunId, principal: StreamUser, services: CurrentServices) -> Run:
    """Return the run that the path names; a stream token of that very run will do."""
    return await find_run(services, principal, run_id)


async def queried_run(
    run_id: Annotated[str, Query(description="A run's id.", examples=[RUN_EXAMPLE])],
    principal: StreamUser,
    services: CurrentServices,
) -> Run:
    """Return the run that the query names; a stream token of that very run will do."""
    return await find_run(services, principal, run_id)


OwnRun = Annotated[Run, Depends(own_run)]
StreamRun = Annotated[Run, Depends(stream_run)]
QueriedRun = Annotated[Run, Depends(queried_run)]


_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9.-]{1,253}))(?::\d{1,5})?")
_OWN_PAGES = frozenset({"same-origin", "none"})
"""What `Sec-Fetch-Site` says of our own pages, and of addresses that a person typed."""

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_OPEN_PATH = "/healthz"
"""Says nothing of anybody; probes may ask under any name."""


class LocalOnly:
    """ASGI middleware for `AUTH=off`: every HTTP route. A WebSocket's route closes it with a code."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
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


def needs_no_token(conn: HTTPConnection, settings: ApiSettings) -> bool:
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


def _from_known_page(conn: HTTPConnection, settings: ApiSettings) -> bool:
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
