"""When a schedule is due: cron expressions in a time zone.

Read by cronsim, which does as Debian's cron does when clocks change: a job at a fixed time that
the change skips runs right after it, one whose time comes twice runs once; one with a `*` for
its minute or hour continues by elapsed time.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from app.core.errors import Unprocessable

MAX_CRON = 200
MAX_TIMEZONE = 64
_FIELDS = 5
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def next_tick(cron: str, timezone: str, after: int) -> int | None:
    """Return the first time after `after` at which the schedule is due, both in microseconds.

    None: not within the next 50 years. `Unprocessable`: the expression or the zone is none.
    """
    start = (_EPOCH + after * _MICROSECOND).astimezone(_zone(timezone))
    for moment in _parse(cron, start):
        tick = (moment - _EPOCH) // _MICROSECOND
        if tick > after:  # in the hour that comes twice, cronsim may name the first time once more
            return tick
    return None


def _parse(cron: str, start: datetime) -> CronSim:
    if len(cron.split()) != _FIELDS or len(cron) > MAX_CRON:
        raise Unprocessable(
            f"cron must have {_FIELDS} fields (minute, hour, day, month, day of week), not {cron[:60]!r}."
        )
    try:
        return CronSim(cron, start)
    except CronSimError as error:
        raise Unprocessable(f"cron {cron[:60]!r} is not valid: {error}.") from None
    except (AssertionError, TypeError, ValueError):  # cronsim's way to stumble over the very strange
        raise Unprocessable(f"cron {cron[:60]!r} is not valid.") from None


def _zone(timezone: str) -> tzinfo:
    if timezone == "UTC":
        return UTC
    if len(timezone) <= MAX_TIMEZONE:  # a longer one is looked for in as many packages as it has parts
        with suppress(KeyError, ValueError, OSError):  # unknown, no relative path, a folder of the database
            return ZoneInfo(timezone)
    raise Unprocessable(f"timezone must be a name such as Europe/Zurich or UTC, not {timezone[:60]!r}.")
