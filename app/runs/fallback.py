"""A worker that the API supervises where no other one is alive (`WORKER_FALLBACK_S`).

So runs continue where the workers were scaled to nothing or don't start. The worker is a process of
its own, started by the command line: a program that takes all memory or a thread that hangs costs this
worker and not the API, which imports nothing that runs programs. The command supervises it: starts it
again, stops it in order, and ends when its pipe from the API closes.

    no worker for so long ──> one API leads, starts it ──> others are alive: it claims no more ──> its
    runs have ended, it ends

Its id begins with `fallback-`. Leases decide, by Redis TIME; how much waits does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from subprocess import DEVNULL

from app.config import Settings
from app.core.errors import StorageError
from app.core.parent_death import LAUNCHER_FD, OWN_PYTHON, RETIRE, ROOT
from app.core.periodic import Leadership
from app.core.telemetry import get_logger

FALLBACK_EVERY_S = 1.0
ROLE = "fallback"
_MARK = "fallback-"
_NOT_FOR_WORKERS = frozenset({"API_TOKEN", "UPSTASH_REDIS_REST_TOKEN", "UPSTASH_REDIS_REST_URL"})
_KILL_AFTER_S = 15.0
"""Behind the time that a worker has for its drain."""

Live = Callable[[], Awaitable[Collection[str]]]
"""Returns the ids of the workers that are alive; `StorageError` while that can't be asked."""
LeadAs = Callable[[str, str, float], Awaitable[bool]]
"""`Lead`, with who leads as the second."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OwnWorker:
    """The process that supervises one worker. It ends when `pipe` is closed, and so when we die."""

    name: str
    process: asyncio.subprocess.Process
    pipe: int

    @classmethod
    async def start(cls, name: str, environ: Mapping[str, str]) -> OwnWorker:
        """Start one whose worker's id begins with `name`; OSError where this machine can't."""
        theirs, ours = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(*OWN_PYTHON, "app", "worker", "--keep", "--name", name),
                env=_environment(environ) | {LAUNCHER_FD: str(theirs)},
                stdin=DEVNULL,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return cls(name, process, ours)

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self.process.returncode is not None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Fallback:
    """Decides when this API has a worker of its own. One API of several has one, but for moments."""

    def __init__(
        self, settings: Settings, live: Live, lead: LeadAs, *, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._after_s = settings.worker.fallback_s
        self._stop_s = settings.worker.drain_s + settings.tools.cancel_grace_s + _KILL_AFTER_S
        self._live, self._environ = live, environ
        self._mine = f"{_MARK}{socket.gethostname()}-{secrets.token_hex(3)}"
        self._leadership = Leadership(
            lambda role, ttl_s: lead(role, self._mine, ttl_s), ROLE, FALLBACK_EVERY_S
        )
        self._present: OwnWorker | None = None
        self._retiring: list[OwnWorker] = []
        self._alone_since: float | None = None

    async def look(self) -> None:
        """Start a worker, or retire the one that is there, if it is time for it."""
        self._forget_the_ended()
        try:
            others = [name for name in await self._live() if not name.startswith(self._mine)]
        except StorageError:
            self._alone_since = None  # who can't see does not know that there is none
            raise
        if self._present or self._retiring:
            await self._leadership.held()  # who has one stays the leader
        if self._present is not None:
            await self._retire_if_needless(self._present, others)
        elif others:
            self._alone_since = None
        else:
            await self._start_if_alone()

    async def _start_if_alone(self) -> None:
        now = time.monotonic()
        self._alone_since = now if self._alone_since is None else self._alone_since
        if now - self._alone_since >= self._after_s and await self._leadership.held():
            name = f"{self._mine}-{secrets.token_hex(2)}"
            self._present = await OwnWorker.start(name, self._environ)
            _log.warning("no worker is alive, this API lets one of its own run", worker=name)

    async def _retire_if_needless(self, worker: OwnWorker, others: list[str]) -> None:
        """Let it go where real workers are back, or where the leader has such a worker too."""
        real = [name for name in others if not name.startswith(_MARK)]
        if not real and (not others or await self._leadership.held()):
            return
        self._present, self._alone_since = None, None
        self._retiring.append(worker)
        worker.signal(RETIRE)
        _log.info("other workers are alive, the API's own finishes its runs and ends", worker=worker.name)

    def _forget_the_ended(self) -> None:
        """Close the pipes of those that are gone; the present one has ended against our will."""
        if self._present is not None and self._present.ended:
            _log.warning("the API's own worker is gone", worker=self._present.name)
            self._retiring.append(self._present)
            self._present = None
        for worker in [worker for worker in self._retiring if worker.ended]:
            os.close(worker.pipe)
            self._retiring.remove(worker)

    async def close(self) -> None:
        """Drain all that are there; whoever takes longer than a drain is killed."""
        workers = [*self._retiring, *([self._present] if self._present else [])]
        self._present, self._retiring = None, []
        for worker in workers:
            worker.signal(signal.SIGTERM)
        ends = [asyncio.create_task(worker.process.wait()) for worker in workers]
        if ends:
            await asyncio.wait(ends, timeout=self._stop_s)
        for worker in workers:
            if not worker.ended:
                worker.signal(signal.SIGKILL)
            os.close(worker.pipe)
        await asyncio.gather(*ends)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the worker's: without what is the API's alone, with a free port of loopback."""
    kept = {name: value for name, value in environ.items() if name not in _NOT_FOR_WORKERS}
    return kept | {"PYTHONPATH": ROOT, "WORKER_HOST": "127.0.0.1", "WORKER_PORT": "0"}
