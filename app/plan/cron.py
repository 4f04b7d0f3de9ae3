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
_DIGITS = 7
_SPANS = {"minutes": 60, "hours": 24, "days": 31, "months": 12, "days of the week": 7}
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def check_steps(cron: str) -> None:
    """Refuse a step that is wider than what it steps through: `*/90` of the minutes fires once an hour.

    Asked when a schedule is made, never of one that is kept: what fires stays as it is.
    """
    for (name, span), field in zip(_SPANS.items(), _standard(cron).split(), strict=False):
        for part in field.split(","):
            base, slash, step = part.partition("/")
            low, dash, high = base.partition("-")
            if dash and low.isdecimal() and high.isdecimal() and len(base) < _DIGITS:
                width = int(high) - int(low) + 1
            else:
                width = span
            if slash and step.isdecimal() and (len(step) >= _DIGITS or int(step) > width):
                raise Unprocessable(
                    f"cron {cron[:60]!r}: a step of {step[:9]} is wider than its {width} {name}, so it would "
                    "fire at the first of them only; name the times, or take several schedules."
                )


def _standard(cron: str) -> str:
    """Return the five fields that a nickname of crontab(5) means; else `cron` itself."""
    return _NICKNAMES.get(cron.strip().lower(), cron)


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
    fields = _standard(cron)
    if len(fields.split()) != _FIELDS or len(cron) > MAX_CRON:
        raise Unprocessable(
            f"cron must have {_FIELDS} fields (minute, hour, day, month, day of week) or be one of "
            f"{', '.join(_NICKNAMES)}, not {cron[:60]!r}."
        )
    try:
        return CronSim(fields, start)
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
