"""`up`: everything on one machine, as the same processes that a cluster runs.

    hold the folder, choose ports ──> Redis, migrate ──> api, workers ──> /readyz ──> up.json

A child that dies is started again. Leaving the block stops the workers (they drain), the
API and Redis, in this order. This process imports neither a web framework nor a database:
it stays small and starts at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException

from app.config import ApiSettings, Settings, is_loopback
from app.core.parent_death import OWN_PYTHON, launcher_pipe
from app.core.private_files import private_folder
from app.up.children import Child, ChildSpec, LogTail, Say, Supervisor, last_lines
from app.up.data_folder import DataFolder, DataFolderRefused
from app.up.redis_server import answers, choose_port, find_engine, free_port, require_free
from tailrun.commands.serving import Serving

READY_S = 60.0
PATIENCE = 3
"""Deaths of a child before it was ever ready that make `up` give up."""

Echo = Callable[[str, str], None]
"""Takes a child's name and one line that it printed."""


@contextmanager
def up(
    settings: Settings,
    say: Say,
    echo: Echo | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Generator[tuple[Serving, Supervisor] | None]:
    """Start everything; yields None when it was asked to stop before all was ready.

    The caller keeps the supervisor ticking (`run`, `wait_for`), or dead children stay dead.
    `environ` is what the children get besides what is decided here. Raises `DataFolderRefused` with
    the reason when it can't start.
    """
    check_host(settings.api)
    folder = DataFolder(settings.data.folder)
    folder.hold()
    try:
        require_free(settings.api.host, settings.api.port, "PORT")
        with Supervisor(say, launcher=launcher_pipe()) as supervisor:
            plan = _plan(settings, folder, environ)
            machine = _Machine(plan, folder, supervisor, echo)
            if machine.start():
                folder.announce(plan.serving)
                yield plan.serving, supervisor
            else:
                yield None
    finally:
        folder.release()


def check_host(api: ApiSettings) -> None:
    """Refuse access from other machines with a generated token, or without one."""
    if not is_loopback(api.host) and api.auth == "off":
        raise DataFolderRefused(
            f"AUTH=off needs a HOST that only this machine reaches, such as 127.0.0.1, not {api.host}"
        )
    if not is_loopback(api.host) and api.token is None:
        raise DataFolderRefused(
            f"HOST={api.host} lets other machines in, and runs execute code: choose a token yourself, "
            f"API_TOKEN=$(openssl rand -hex 32) HOST={api.host} tailrun up",
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Decided before anything is started. `redis_port` None: Redis is not started here."""

    settings: Settings
    serving: Serving
    environ: Mapping[str, str]
    port: int
    redis_port: int | None
    worker_ports: tuple[int, ...]
    projects_key: str

    @property
    def env(self) -> dict[str, str]:
        """The variables of every child, on top of the environment of `up`."""
        return dict(self.environ) | {
            "DATA_DIR": self.serving.data_dir,
            "HOST": self.settings.api.host,
            "PORT": str(self.port),
            "REDIS_URL": self.serving.redis_url,
            "PROJECTS_KEY": self.projects_key,
            "PYTHONUNBUFFERED": "1",
        }


def _check_redis(settings: Settings) -> None:
    """Refuse to start on a Redis that is not there."""
    import asyncio  # noqa: PLC0415 - only for a Redis that is not started here

    from app.core.errors import StorageError  # noqa: PLC0415
    from app.redis.address import RedisAddress  # noqa: PLC0415
    from app.redis.inspect import ping  # noqa: PLC0415

    try:
        asyncio.run(ping(RedisAddress.of(settings.redis)))
    except StorageError as error:
        raise DataFolderRefused(
            f"REDIS_URL does not answer ({error}). Start that Redis, or leave REDIS_URL unset: "
            "`tailrun up` then starts one of its own",
        ) from error


def _plan(settings: Settings, folder: DataFolder, environ: Mapping[str, str]) -> _Plan:
    if settings.redis.url is not None:
        _check_redis(settings)
    elif settings.redis.rest_url is not None:
        raise DataFolderRefused(
            "UPSTASH_REDIS_REST_URL is set without REDIS_URL: workers need the Redis protocol. Set both to "
            "the same database, or neither"
        )
    port = settings.api.port or free_port(settings.api.host)
    redis_port = None if settings.redis.url is not None else choose_port(settings.redis.port)
    redis_url = settings.redis.effective_url if redis_port is None else f"redis://127.0.0.1:{redis_port}/0"
    token = settings.api.token.get_secret_value() if settings.api.token is not None else folder.token()
    serving = Serving(
        url=f"http://{_reachable(settings.api.host)}:{port}",
        token=token,
        redis_url=redis_url,
        data_dir=str(folder.path),
        pid=os.getpid(),
    )
    workers = tuple(free_port() for _ in range(settings.worker.up_workers))
    key = folder.projects_key() if settings.projects.key is None else settings.projects.key.get_secret_value()
    return _Plan(settings, serving, environ, port, redis_port, workers, key)


def _reachable(host: str) -> str:
    """Return the host for a URL on this machine: 0.0.0.0 is a place to listen, not to go to."""
    if host in {"0.0.0.0", "::"}:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


@dataclass(slots=True)
class _Machine:
    """The children of one `up`."""

    plan: _Plan
    folder: DataFolder
    supervisor: Supervisor
    echo: Echo | None
    tails: list[LogTail] = field(default_factory=list[LogTail])

    def start(self) -> bool:
        """Start everything in order; False when a stop was requested before the end."""
        private_folder(self.folder.path / "logs")
        self.supervisor.each_tick = self.pump
        redis = None if self.plan.redis_port is None else self._redis(self.plan.redis_port)
        migrate = self._python("migrate", "migrate", keep=False)
        if not self._await(migrate, lambda: migrate.exit_code == 0):
            return False
        port = self.plan.redis_port
        if redis is not None and port is not None and not self._await(redis, lambda: answers(port)):
            return False
        return self._serve()

    def _serve(self) -> bool:
        drain = self.plan.settings.worker.drain_s + self.plan.settings.tools.cancel_grace_s + 10
        token, own_worker_s = self.plan.serving.token, drain if self.plan.settings.worker.fallback_s else 0
        api = self._python("api", "api", {"API_TOKEN": token}, stage=1, stop_s=10 + own_worker_s)
        waits = [(api, _reachable(self.plan.settings.api.host), self.plan.port)]
        for number, port in enumerate(self.plan.worker_ports, 1):
            name = "worker" if len(self.plan.worker_ports) == 1 else f"worker-{number}"
            env = {"WORKER_HOST": "127.0.0.1", "WORKER_PORT": str(port)}
            waits.append((self._python(name, "worker", env, stage=2, stop_s=drain), "127.0.0.1", port))
        return all(self._await(child, lambda h=host, p=port: _ready(h, p)) for child, host, port in waits)

    def pump(self) -> None:
        """Hand over what the children printed."""
        for tail in self.tails:
            tail.pump()

    def _redis(self, port: int) -> Child:
        engine = find_engine()
        data = self.folder.path / "redis" / f"{engine.name}-{engine.version}"
        private_folder(data)
        return self.supervisor.start(
            ChildSpec(
                name="redis",
                argv=engine.argv(port, data),
                env=self.plan.environ,
                log=self.folder.path / "logs" / "redis.log",
                death_signal=signal.SIGTERM,  # it saves before it goes
                inherit=(self.folder.lock_fd,),
            ),
        )

    def _python(
        self,
        name: str,
        command: str,
        env: dict[str, str] | None = None,
        *,
        keep: bool = True,
        stage: int = 0,
        stop_s: float = 10,
    ) -> Child:
        log = self.folder.path / "logs" / f"{name}.log"
        if self.echo is not None and keep:
            self.tails.append(LogTail(log, lambda line, echo=self.echo: echo(name, line)))
        inherited = self.plan.env
        inherited.pop("API_TOKEN", None)  # only the API needs it
        spec = ChildSpec(
            name=name,
            argv=[*OWN_PYTHON, "app", command],
            env=inherited | (env or {}),
            log=log,
            stop_s=stop_s,
            stage=stage,
            inherit=(self.folder.lock_fd,),
        )
        return self.supervisor.start(spec, keep=keep)

    def _await(self, child: Child, condition: Callable[[], bool]) -> bool:
        """Wait until a child is ready; False when asked to stop; `DataFolderRefused` when it can't start."""

        def settled() -> bool:
            lost = child.exit_code not in {None, 0} if not child.keep else child.failures >= PATIENCE
            return lost or condition()

        done = self.supervisor.wait_for(settled, READY_S)
        if self.supervisor.stops:
            return False
        if done and condition():
            return True
        log = child.spec.log
        end = last_lines(log) if log is not None else ""
        raise DataFolderRefused(f"{child.spec.name} did not start. The end of {log}:\n{end}")


def _ready(host: str, port: int) -> bool:
    connection = HTTPConnection(host.strip("[]"), port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200  # noqa: PLR2004
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
