"""The API process: wiring only. The routes are in `app.routes`.

Owns the life of everything that the routes share (`Services`), and the server around it. A
Redis or database that is away at start-up stops nothing: the process serves, says on
`/readyz` and in its log what is missing, and becomes ready when it is there.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from functools import cache, partial
from types import FrameType

import orjson
import uvicorn
import yaml
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app.config import ApiSettings, Settings, is_loopback
from app.core.clock import now_us
from app.core.loop_guard import answering
from app.core.periodic import Periodic, going_on
from app.core.telemetry import (
    OF_WORKER,
    configure_logging,
    get_logger,
    leave_out,
    log_retired_settings,
    log_the_unexpected,
)
from app.db.approval_store import ApprovalStore
from app.db.call_store import CallStore
from app.db.engine import Database
from app.db.inbox_store import InboxStore
from app.db.log_store import LogStore
from app.db.project_store import ProjectStore
from app.db.run_store import RunStore
from app.db.schedule_store import ScheduleStore
from app.db.token_store import TokenStore
from app.db.webhook_store import WebhookStore
from app.plan import model_names, task_types
from app.plan.model_names import BadModelNames, ModelNames
from app.plan.task_types import BadTasksFile, TaskTypes
from app.redis.clients import RedisClients
from app.redis.lease import TICK_EVERY_S, Ticks
from app.redis.publisher import Publisher, Tail
from app.redis.queue import DeadLetters, Depth, Queue
from app.routes import (
    access,
    agents,
    calls,
    dead,
    docs_page,
    errors,
    execute,
    files,
    health,
    logs,
    openapi,
    operations,
    projects,
    queue,
    runs,
    schedules,
    staging,
    stream,
    tasks,
    tokens,
    webhooks,
    websocket,
)
from app.routes.auth import LocalOnly
from app.routes.health import ReadyCheck
from app.routes.run_counts import RunCounts
from app.routes.server import AbortableHttp, AbortableWebSocket
from app.routes.staging_port import StagingPort
from app.runs.backlog import Backlog
from app.runs.fallback import FALLBACK_EVERY_S, Fallback
from app.runs.open_streams import OpenStreams
from app.runs.services import Services
from app.runs.waiting import LOOK_EVERY_S, NO_WORKER_AFTER_S, WaitingLines, no_worker
from app.storage.factory import open_workspaces
from app.stream.history import LogHistory
from app.stream.hub import StreamHub

_log = get_logger(__name__)

_ROUTES = (
    execute,
    runs,
    agents,
    calls,
    schedules,
    logs,
    stream,
    websocket,
    webhooks,
    files,
    staging,
    tasks,
    projects,
    operations,
    queue,
    dead,
    tokens,
    health,
    docs_page,
)
_CORS_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Range", "X-Request-ID"),
)
_EXPOSED_HEADERS = (
    "Location",
    "X-Request-ID",
    "X-Next-After",
    "Content-Range",
    "Content-Disposition",
    "ETag",
    "X-Executable",
)
_GRACEFUL_S = 5


def create_app(settings: Settings) -> FastAPI:
    """Make the application; connections are opened when it starts, and no answer is awaited."""
    app = FastAPI(
        title="Tailrun",
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.task_types = task_types.load(settings.tasks.file)
    app.state.models = model_names.load(settings.llm)
    errors.install(app)
    for module in _ROUTES:
        app.include_router(module.router)
    app.add_middleware(access.HeadAsGet)
    app.add_middleware(access.PlainBodies)
    if settings.api.auth == "off":
        app.add_middleware(LocalOnly, settings=settings.api)
    if (port := own_staging_port(settings.api)) is not None:
        app.add_middleware(StagingPort, port=port)
    app.add_middleware(access.Access)
    if origins := [origin.strip() for origin in settings.api.cors_origins.split(",") if origin.strip()]:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=list(_CORS_HEADERS),
            expose_headers=list(_EXPOSED_HEADERS),
        )
    app.openapi = cache(partial(openapi.document, app))
    return app


def own_staging_port(api: ApiSettings) -> int | None:
    """Return the port that only tool pods use, None where they use the API's."""
    return None if api.staging_port == api.port else api.staging_port


def openapi_yaml() -> str:
    """Return the OpenAPI document as docs/openapi.yaml holds it."""
    settings = Settings()
    document = orjson.loads(orjson.dumps(create_app(settings).openapi()))  # a tree: YAML without anchors
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def serve(settings: Settings, *, ready: Callable[[str], None] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; return the exit code.

    `ready` is called with the URL once requests are answered.
    """
    configure_logging(settings.own_log, "api")
    leave_out(OF_WORKER)
    log_retired_settings()
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    if settings.api.auth == "off" and not is_loopback(settings.api.host):
        _log.error(
            f"AUTH=off opens this server to whoever reaches it, so HOST must be a loopback address, not "
            f"{settings.api.host}: set HOST=127.0.0.1, or AUTH=on"
        )
        return 1
    try:
        app = create_app(settings)
    except BadTasksFile as error:
        for problem in error.problems:
            _log.error(problem)
        return 1
    except BadModelNames as error:
        _log.error(str(error))
        return 1
    host = settings.api.host
    ports = {"PORT": settings.api.port, "STAGING_PORT": own_staging_port(settings.api)}
    socks: list[socket.socket] = []
    for name, number in ports.items():
        if number is None:
            continue
        try:
            socks.append(listen(host, number))
        except OSError as error:
            _log.error(
                f"cannot listen on {host}:{number} ({error.strerror or error}): stop what listens "
                f"there, or set {name} (and HOST) to something free, such as {name}={number + 1}"
            )
            for sock in socks:
                sock.close()
            return 1
    host, port = socks[0].getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    log_the_unexpected()
    return Server(app, lambda: (ready or _say_ready)(url), answering).serve_on(*socks)


def _say_ready(url: str) -> None:
    _log.info("serving", url=url)


def listen(host: str, port: int) -> socket.socket:
    """Open the socket to serve on; OSError where it is taken. Port 0 is any free one."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except OSError:
        sock.close()
        raise
    return sock


class Server(uvicorn.Server):
    """uvicorn, but a signal first lets the streams end: watchers go on elsewhere, none is cut."""

    def __init__(
        self,
        app: FastAPI,
        ready: Callable[[], None],
        around: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        self._app = app
        self._ready = ready
        self._around = around
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                app,
                loop="auto",
                http=AbortableHttp,
                ws=AbortableWebSocket,
                ws_per_message_deflate=False,  # each event is a message of its own
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACEFUL_S,
                ws_max_size=65_536,
            )
        )

    def serve_on(self, *socks: socket.socket) -> int:
        """Serve on open sockets until a signal comes; return the exit code."""
        self.run(sockets=list(socks))
        return 0 if self.started else 1

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve within the context that was given."""
        async with self._around():
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the streams, then stop. The signal is not raised again: the exit code is ours."""
        services: Services | None = getattr(self._app.state, "services", None)
        if services is not None and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: it has stopped already
                self._loop.call_soon_threadsafe(services.draining.set)
        self.force_exit = self.should_exit
        self.should_exit = True


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with AsyncExitStack() as stack:
        services = _open(app.state.settings, app.state.task_types, app.state.models, stack)
        app.state.services = services
        app.state.run_counts = RunCounts(services.runs.counts)
        stack.push_async_callback(app.state.run_counts.close)
        app.state.ready_check = ReadyCheck(services)
        await app.state.ready_check()  # at most 2 s; whatever it says, serve
        check, ticks = app.state.ready_check, Ticks(services.redis, services.settings.worker.lease_s)
        work = [
            Periodic("readiness", check.again_s, check.look),
            Periodic("ticks", TICK_EVERY_S, ticks.tick, again_most_s=TICK_EVERY_S),
            Periodic("waiting", LOOK_EVERY_S, _waiting(services).look),
            services.streams.checking,
        ]
        if services.settings.worker.fallback_s:
            fallback = Fallback(services.settings, services.queue.live_workers, ticks.lead)
            stack.push_async_callback(fallback.close)
            work.append(Periodic("fallback", FALLBACK_EVERY_S, fallback.look, again_most_s=10))
        await stack.enter_async_context(going_on(work))
        if services.settings.api.auth == "off":
            _log.warning("AUTH=off: whoever uses this machine is an admin here, without a token")
        elif services.settings.api.token is None:
            _log.warning("API_TOKEN is not set: only tokens in the database open this API")
        yield
        services.draining.set()


def _waiting(services: Services) -> WaitingLines:
    def why(depth: Depth) -> str:
        return no_worker(depth, services.settings.worker.fallback_s)

    return WaitingLines(
        services.queue, services.runs, services.publisher, now_us, why, after_s=NO_WORKER_AFTER_S
    )


def _open(settings: Settings, types: TaskTypes, models: ModelNames, stack: AsyncExitStack) -> Services:
    """Make the services; `stack` closes them, the last one first."""
    db = Database(settings.data.effective_database_url)
    stack.push_async_callback(db.close)
    redis = RedisClients.for_api(settings.redis)
    stack.push_async_callback(redis.close)
    workspaces = open_workspaces(settings)
    stack.push_async_callback(workspaces.close)
    run_store, tail, draining = RunStore(db), Tail(redis), asyncio.Event()
    history = LogHistory(LogStore(db), run_store, workspaces)
    hub = StreamHub(
        redis,
        tail,
        history.page,
        run_store.heads,
        draining=draining,
        limit=settings.stream.limit,
    )
    stack.push_async_callback(hub.close)
    tokens = TokenStore(db)
    streams = OpenStreams(hub, tokens, now_us, channel=redis.keys.tokens(), per_user=settings.stream.user_max)
    return Services(
        settings=settings,
        db=db,
        runs=run_store,
        schedules=ScheduleStore(db),
        webhooks=WebhookStore(db),
        projects=ProjectStore(db, settings.projects.keys),
        task_types=types,
        models=models,
        approvals=ApprovalStore(db),
        inbox=InboxStore(db),
        calls=CallStore(db),
        logs=history,
        tokens=tokens,
        redis=redis,
        queue=Queue(redis),
        dead=DeadLetters(redis),
        backlog=Backlog(run_store.backlog, settings.runs.user_backlog_max),
        publisher=Publisher(redis, tail_ttl_s=settings.redis.tail_ttl_s),
        tail=tail,
        hub=hub,
        streams=streams,
        workspaces=workspaces,
        draining=draining,
    )
