"""Ends a process whose event loop has not answered for a while, whatever it is that holds it up.

No Python code can do that: an expression of `re` or a call into C may hold the GIL without end, and then
neither a thread of ours runs nor a handler of SIGTERM. The timer of `faulthandler` waits without the GIL.
Where the loop does not set it anew in time, it writes `Timeout (…)!` to stderr and where each thread is
(files, lines and functions; no values, which may be users'), and ends the process with exit code 1.

The timer is the only one of its process: nothing else here may use it, and no test runs this in its own.
It counts time in which the whole process was stopped, as by SIGSTOP; not that of a suspended machine.
"""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

SILENT_S = 40.0
"""Longer than the lease thread waits, which can say more where it still runs."""

_PARTS = 8


@asynccontextmanager
async def answering(silent_s: float | None = None) -> AsyncGenerator[None]:
    """Hold the running loop to answering within `silent_s` seconds for as long as the context lasts."""
    within_s = SILENT_S if silent_s is None else silent_s
    faulthandler.dump_traceback_later(within_s, exit=True)  # here, so that a stderr that is none is told
    turning = asyncio.create_task(_turn(within_s))
    try:
        yield
    finally:
        turning.cancel()
        faulthandler.cancel_dump_traceback_later()


async def _turn(within_s: float) -> None:
    while True:
        await asyncio.sleep(within_s / _PARTS)
        faulthandler.dump_traceback_later(within_s, exit=True)
