"""Work that is done again and again beside everything else: one way to do it, for API and worker.

A `Periodic` owns what every such loop needs and none may get wrong: its interval with jitter, who of
many processes does the work, a store that is away, an unexpected error, and the end.

Leadership saves work, and nothing rests on it: a leader that was frozen may overlap its successor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

from app.core.errors import StorageError
from app.core.telemetry import PERIODIC_ERRORS, get_logger
from tailrun.process.aio import run_to_completion

_JITTER = 0.1
_LEAD_ROUNDS, _LEAD_LEAST_S = 3, 5.0
_AGAIN_BASE_S, _AGAIN_MOST_S = 1.0, 60.0
_DICE = Random()  # noqa: S311 - jitter

_log = get_logger(__name__)

Lead = Callable[[str, float], Awaitable[bool]]
"""Become or stay the leader of a role for so many seconds; False: another process is."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter, in seconds: random between 0 and base · 2ⁿ, at most `cap_s`.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_s: float
    cap_s: float
    dice: Random

    def delay_us(self, retries: int) -> int:
        """Return the wait before the retry that follows `retries` earlier ones."""
        ceiling = min(self.cap_s, self.base_s * 2 ** min(retries, 32))
        return int(self.dice.uniform(0, ceiling) * 1_000_000)


class Leadership:
    """One process's claim to lead `role`, whose work is done every `every_s` seconds.

    It lasts for three rounds of the work, at least 5 s, so a leader's death costs at most that. Who
    leads renews it when a third is gone; who does not lead asks each time.
    """

    def __init__(self, lead: Lead, role: str, every_s: float) -> None:
        self._lead, self._role = lead, role
        self.ttl_s = max(_LEAD_LEAST_S, _LEAD_ROUNDS * every_s)
        self._renewed_at = float("-inf")

    @property
    def ask_in_s(self) -> float:
        """When it has to be asked for again, in seconds from now: at the latest when its time runs out."""
        return max(0.0, min(self.ttl_s / 3, self._left_s()))

    async def held(self) -> bool:
        """Whether it is ours now; `StorageError` while that can't be asked."""
        now = _now()
        if now < self._renewed_at + self.ttl_s / 3:
            return True
        leads = await self._lead(self._role, self.ttl_s)
        self._renewed_at = now if leads else float("-inf")
        return leads

    async def still_held(self) -> bool:
        """Whether work that has begun may go on: while Redis is away, until our time has run out."""
        try:
            async with asyncio.timeout(self.ask_in_s):
                return await self.held()
        except (StorageError, TimeoutError):
            return self._left_s() > 0

    def _left_s(self) -> float:
        return self._renewed_at + self.ttl_s - _now()


class Periodic:
    """Does `work` every `every_s` seconds, the first time at once, for as long as it is started.

    `lead` given, only one of the processes that give it does the work of this `name`: it stays the leader
    while a round runs, however long, and a round is cancelled when another process leads. `on_idle`
    is called in each round that is left to another process.

    A `StorageError` only means that a server is away: logged when it begins and then ever more seldom,
    and the interval stays. Anything else is counted, logged with its traceback, and pauses the work
    for 1 s, then 2, 4 and so on, at most `again_most_s`.
    """

    def __init__(
        self,
        name: str,
        every_s: float | Callable[[], float],
        work: Callable[[], Awaitable[object]],
        *,
        lead: Lead | None = None,
        on_idle: Callable[[], object] = lambda: None,
        again_most_s: float = _AGAIN_MOST_S,
        dice: Random = _DICE,
    ) -> None:
        self.name = name
        self._every_s, self._work, self._on_idle = every_s, work, on_idle
        self._again_most_s, self._dice = again_most_s, dice
        self._leadership = Leadership(lead, name, self._interval()) if lead is not None else None
        self._early = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away = self._broken = 0

    def start(self) -> None:
        """Begin; work that has begun continues."""
        if self._task is None:
            self._task = asyncio.create_task(self.run(), name=self.name)

    async def stop(self) -> None:
        """Cancel the work and wait for its end."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    def soon(self) -> None:
        """Do the next round now, or right after the one that runs."""
        self._early.set()

    async def run(self) -> None:
        """Do the work until cancelled."""
        while True:
            try:
                await self._round()
            except StorageError as error:
                self._log_away(error)
                pause_s = self._interval()
            except (Exception, asyncio.CancelledError) as error:
                if _cancelled():
                    raise
                pause_s = self._log_broken(error)
            else:
                self._log_back()
                pause_s = self._interval()
            if _cancelled():
                return
            await self._sleep(pause_s * self._dice.uniform(1 - _JITTER, 1 + _JITTER))

    # -- a round --------------------------------------------------------------------------

    async def _round(self) -> None:
        self._early.clear()
        if self._leadership is None:
            await self._work()
        elif await self._leadership.held():
            await self._work_as_leader(self._leadership)
        else:
            self._on_idle()

    async def _work_as_leader(self, leadership: Leadership) -> None:
        """Work, and renew the leadership meanwhile: work that takes longer than it lasts stays one's own."""
        task = asyncio.ensure_future(self._work())
        lost = False
        try:
            while not (task.done() or lost):
                await asyncio.wait((task,), timeout=leadership.ask_in_s)
                lost = not task.done() and not await leadership.still_held()
        finally:
            task.cancel()
            await run_to_completion(asyncio.wait((task,)))
        if lost and task.cancelled():
            _log.warning("another process leads now, a round was cancelled", work=self.name)
            self._on_idle()
        else:
            task.result()

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._early.wait()
        except TimeoutError:
            return

    def _interval(self) -> float:
        return self._every_s() if callable(self._every_s) else self._every_s

    # -- what the log says ----------------------------------------------------------------

    def _log_away(self, error: StorageError) -> None:
        self._away += 1
        if self._away & (self._away - 1) == 0:
            _log.warning(
                "periodic work waits for a server", work=self.name, tried=self._away, error=str(error)
            )

    def _log_broken(self, error: BaseException) -> float:
        pause_s = min(self._again_most_s, _AGAIN_BASE_S * 2 ** min(self._broken, 32))
        self._broken += 1
        PERIODIC_ERRORS.labels(self.name).inc()
        _log.error(
            "periodic work failed, it continues after a pause",
            work=self.name,
            pause_s=round(pause_s),
            exc_info=error,
        )
        return pause_s

    def _log_back(self) -> None:
        if self._away or self._broken:
            _log.info("periodic work continues", work=self.name, failed=self._away + self._broken)
        self._away = self._broken = 0


@asynccontextmanager
async def going_on(works: Iterable[Periodic]) -> AsyncGenerator[None]:
    """Have all of them done for as long as the context lasts."""
    started = list(works)
    for work in started:
        work.start()
    try:
        yield
    finally:
        await asyncio.gather(*(work.stop() for work in started))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _cancelled() -> bool:
    """Whether the task that runs this was asked to end, also where the work took that for its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
