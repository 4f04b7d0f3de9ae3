"""What every route asks for before it does anything: who is calling, and which run they mean.

Owns authentication (bearer tokens, stream tokens) and the look-up of a run in a path, so
that no route can forget either. A run that is unknown, malformed or somebody else's is the
same 404. Works for HTTP and WebSocket alike.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Path
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from app.clock import now_us
from app.config import Settings
from app.db.engine import Database
from app.db.project_store import ProjectStore
from app.db.run_store import RunStore
from app.db.schedule_store import ScheduleStore
from app.db.token_store import TokenStore
from app.db.webhook_store import WebhookStore
from app.errors import Forbidden, NotFound, StorageError, Unauthorized
from app.models import Run
from app.redis.clients import RedisClients
from app.redis.dead import DeadLetters
from app.redis.publisher import Publisher
from app.redis.queue import Queue
from app.redis.subscriber import StreamHub
from app.redis.tail import Tail
from app.routes.backlog import Backlog
from app.routes.log_history import LogHistory
from app.routes.no_token import needs_no_token
from app.routes.open_streams import OpenStreams
from app.storage.workspace import Workspaces
from app.tasks.types import TaskTypes

ADMIN_USER = "admin"
"""The user that the bootstrap token (`API_TOKEN`) stands for."""

RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""What a run id looks like (a UUID in lower case); anything else is not looked up."""

Scope = Literal["user", "admin", "stream"]


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the routes share, one of each per process; stands in `app.state.services`."""

    settings: Settings
    db: Database
    runs: RunStore
    schedules: ScheduleStore
    webhooks: WebhookStore
    projects: ProjectStore
    task_types: TaskTypes
    logs: LogHistory
    tokens: TokenStore
    redis: RedisClients
    queue: Queue
    dead: DeadLetters
    backlog: Backlog
    publisher: Publisher
    tail: Tail
    hub: StreamHub
    streams: OpenStreams
    workspaces: Workspaces
    draining: asyncio.Event


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling. `token_id` is None for the bootstrap token, `run_id` set for a stream token.

    `made_by` is the id of the token that made a stream token.
    """

    user_id: str
    scope: Scope
    token_id: str | None = None
    run_id: str | None = None
    made_by: str | None = None

    @property
    def rests_on(self) -> str | None:
        """The id of the token with which this access ends; None: `API_TOKEN`, which ends with the process."""
        return self.made_by if self.scope == "stream" else self.token_id

    @property
    def admin(self) -> bool:
        """Whether all users' runs and the server's internals are open to the caller."""
        return self.scope == "admin"


def services(conn: HTTPConnection) -> Services:
    """Return the services of the app that serves this request."""
    return conn.app.state.services


async def _shared(conn: HTTPConnection) -> Services:
    """Be a dependency: one that is not `async` costs a trip into a thread per request."""
    return services(conn)


CurrentServices = Annotated[Services, Depends(_shared)]


async def _principal(token: str, services: Services) -> Principal:
    bootstrap = services.settings.api_token
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
    if needs_no_token(conn, services.settings) and token is None:
        return Principal(ADMIN_USER, "admin")
    if token is None:
        raise Unauthorized("Send a token: `Authorization: Bearer <token>`.")
    principal = await _principal(token, services)
    if principal.scope == "stream":
        raise Unauthorized("A stream token opens only the stream of its own run.")
    return principal


async def stream_user(conn: HTTPConnection, token: str | None, services: Services) -> Principal:
    """Return the caller of a stream route, where `?access_token=` may carry a stream token."""
    open_to_all = needs_no_token(conn, services.settings)
    if token is not None:
        return await _principal(token, services)
    query = conn.query_params.get("access_token")
    if not query and open_to_all:
        return Principal(ADMIN_USER, "admin")
    if not query:
        raise Unauthorized("Send `Authorization: Bearer <token>`, or a stream token as `?access_token=`.")
    principal = await _principal(query, services)
    if principal.scope != "stream":
        raise Unauthorized("Only a stream token may stand in a URL; POST …/stream-token makes one.")
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
    """Whether an admin is calling where nobody needs a token; no if that can't be found out just now."""
    try:
        return (await _Bearer(current_user)(conn)).admin
    except (Forbidden, Unauthorized, StorageError):
        return False


async def find_run(services: Services, principal: Principal, run_id: str) -> Run:
    """Return a run that the caller may see; `NotFound` for every other."""
    run = await services.runs.get(run_id) if RUN_ID.fullmatch(run_id) else None
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


OwnRun = Annotated[Run, Depends(own_run)]
StreamRun = Annotated[Run, Depends(stream_run)]
