"""The time that processes compare: Redis TIME, counted on here by the monotonic clock.

Due times, leases, expiries and retention are written by one process and judged by another, and the
clocks of their machines may differ by an hour. So no process asks its own: whatever brings Redis TIME
along (a claim, a tick, a look at whether Redis is there) tells this clock, and in between it runs on
by itself, also while Redis is away. Only a process that has never reached Redis goes by its machine's
time. What a person alone looks at (the time in a log line of ours) may stay the machine's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


_LAST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


@lru_cache(maxsize=8)
def _second(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).replace(tzinfo=None).isoformat()


def format_ts(us: int) -> str:
    """Format microseconds as RFC 3339 with six decimals and `Z`.

    Years have four digits there: what lies before 1 or after 9999 shows as the first or the last moment.
    """
    second, rest = divmod(_within_years(us), 1_000_000)
    return f"{_second(second)}.{rest:06d}Z"


def calendar_second(us: int) -> int:
    """Return the second since the epoch, or the nearest that calendars (years 1 to 9999) hold."""
    return _within_years(us) // 1_000_000


def _within_years(us: int) -> int:
    return max(_FIRST_US, min(us, _LAST_US))


def parse_ts(text: str) -> int:
    """Read an RFC 3339 time (a zone is required) into microseconds.

    ValueError if it is none, or if it is before the year 1 or after 9999 in UTC, where it can't be written.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        message = f"{text!r} has no time zone"
        raise ValueError(message)
    us = (moment - _EPOCH) // timedelta(microseconds=1)
    if not _FIRST_US <= us <= _LAST_US:
        message = f"{text!r} is not within the years 1 to 9999 in UTC"
        raise ValueError(message)
    return us


_KEPT = 4
"""Answers that are remembered: at most as many seconds, in which two clocks hardly drift apart."""


def _wall_us() -> int:
    return time.time_ns() // 1000


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000


class Clock:
    """Redis TIME in microseconds since the epoch; until Redis has said it, the time of this machine.

    It is never behind: Redis read its clock after it was asked, so that an answer tells how far Redis
    is ahead of us at most, and the smallest of the last answers is nearest. It is early by no more
    than the fastest of them took. So an entry that Redis has just made due does not seem early.
    """

    def __init__(
        self, wall_us: Callable[[], int] = _wall_us, monotonic_us: Callable[[], int] = _monotonic_us
    ) -> None:
        self.asking = monotonic_us
        self._ahead: deque[int] = deque(maxlen=_KEPT)
        self._ahead_us = wall_us() - monotonic_us()

    def now_us(self) -> int:
        """Return the time, without asking anybody."""
        return self.asking() + self._ahead_us

    def heard(self, said_us: int, asked_at: int) -> None:
        """Take note of Redis TIME; `asked_at` is what `asking` returned before the question went out."""
        if said_us - self.asking() > self._ahead_us:  # later than can be: that clock, or machine, went on
            self._ahead.clear()
        self._ahead.append(said_us - asked_at)
        self._ahead_us = min(self._ahead)


CLOCK = Clock()
"""The clock of this process."""


def now_us() -> int:
    """Return the time in microseconds since the epoch, as all processes of a deployment see it."""
    return CLOCK.now_us()
