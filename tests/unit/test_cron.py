"""Cron expressions in time zones: what they name, over changes of the clocks too."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.clock import format_ts, parse_ts
from app.core.errors import Unprocessable
from app.plan.cron import check_steps, next_tick

ZURICH = "Europe/Zurich"
HOUR_US = 3_600_000_000


def ticks(cron: str, timezone: str, after: str) -> Iterator[str]:
    """Yield the ticks after a moment, as the clocks of the time zone show them."""
    tick = parse_ts(after)
    while (following := next_tick(cron, timezone, tick)) is not None:
        tick = following
        moment = datetime.fromisoformat(format_ts(tick)).astimezone(ZoneInfo(timezone))
        yield moment.isoformat(timespec="minutes")


def first(count: int, cron: str, timezone: str, after: str) -> list[str]:
    return list(itertools.islice(ticks(cron, timezone, after), count))


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("*/20 * * * *", ["2026-11-20T12:20+00:00", "2026-11-20T12:40+00:00", "2026-11-20T13:00+00:00"]),
        ("0 9 * * MON", ["2026-11-23T09:00+00:00", "2026-11-30T09:00+00:00", "2026-12-07T09:00+00:00"]),
        ("0 0 29 2 *", ["2028-02-29T00:00+00:00", "2032-02-29T00:00+00:00", "2036-02-29T00:00+00:00"]),
        ("0 12 L * *", ["2026-11-30T12:00+00:00", "2026-12-31T12:00+00:00", "2027-01-31T12:00+00:00"]),
    ],
)
def test_the_times_that_an_expression_names(cron: str, expected: list[str]) -> None:
    """Strictly after the moment that is given."""
    assert first(3, cron, "UTC", "2026-11-20T12:00:00Z") == expected


def test_the_time_zone_counts() -> None:
    assert first(1, "0 9 * * *", ZURICH, "2026-07-01T00:00:00Z") == ["2026-07-01T09:00+02:00"]
    assert first(1, "0 9 * * *", "Asia/Kathmandu", "2026-07-01T00:00:00Z") == ["2026-07-01T09:00+05:45"]


def test_a_time_that_the_clocks_skip_runs_right_after_it() -> None:
    """At 02:00 it becomes 03:00; the job of 02:30 runs once, and the next day as ever."""
    assert first(3, "30 2 * * *", ZURICH, "2026-03-28T00:00:00Z") == [
        "2026-03-28T02:30+01:00",
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:30+02:00",
    ]


def test_a_time_that_comes_twice_runs_once() -> None:
    """At 03:00 it becomes 02:00 again; asked in the second hour too, the first one is not named again."""
    assert first(3, "30 2 * * *", ZURICH, "2026-10-24T00:00:00Z") == [
        "2026-10-24T02:30+02:00",
        "2026-10-25T02:30+02:00",
        "2026-10-26T02:30+01:00",
    ]
    assert first(1, "30 2 * * *", ZURICH, "2026-10-25T01:10:00Z") == ["2026-10-26T02:30+01:00"]


def test_each_hour_goes_on_by_elapsed_time() -> None:
    """No gap and nothing twice where the hour is a star."""
    for day in ("2026-03-28T22:00:00Z", "2026-10-24T22:00:00Z"):
        named = first(8, "15 * * * *", ZURICH, day)
        moments = [datetime.fromisoformat(text).timestamp() for text in named]
        assert [b - a for a, b in itertools.pairwise(moments)] == [3600] * 7


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "a b c d e",
        "*/0 * * * *",
        "@reboot",
        "@dayly",
        "0 0 31 2 *",
        "1L/2 * * * *",
    ],
)
def test_what_is_no_expression_is_refused(cron: str) -> None:
    with pytest.raises(Unprocessable, match="cron"):
        next_tick(cron, "UTC", 0)


@pytest.mark.parametrize(
    ("nickname", "due"),
    [
        ("@hourly", "2026-11-20T13:00+00:00"),
        (" @Daily ", "2026-11-21T00:00+00:00"),
        ("@midnight", "2026-11-21T00:00+00:00"),
        ("@weekly", "2026-11-22T00:00+00:00"),
        ("@monthly", "2026-12-01T00:00+00:00"),
        ("@yearly", "2027-01-01T00:00+00:00"),
        ("@annually", "2027-01-01T00:00+00:00"),
    ],
)
def test_a_nickname_is_what_crontab_means_by_it(nickname: str, due: str) -> None:
    assert first(1, nickname, "UTC", "2026-11-20T12:00:00Z") == [due]


WIDE = ["*/90 * * * *", "* */30 * * *", "* * */32 * *", "* * * */13 *", "* * * * */8", "0-20/30 * * * *"]
WIDE += ["1,*/61 * * * *", f"*/{'9' * 50} * * * *", "* 8-10/4 * * *"]


@pytest.mark.parametrize("cron", WIDE)
def test_a_step_wider_than_its_range_is_refused_when_a_schedule_is_made(cron: str) -> None:
    with pytest.raises(Unprocessable, match="wider than"):
        check_steps(cron)


@pytest.mark.parametrize("cron", ["*/60 */24 */31 */12 */7", "0-9/10 * * * *", "@daily", "0 0 * * MON-FRI/2"])
def test_a_step_within_its_range_is_fine(cron: str) -> None:
    check_steps(cron)


def test_a_schedule_that_is_kept_goes_on_with_its_wide_step() -> None:
    """It was accepted once; an update must not stop it."""
    assert first(2, "*/90 * * * *", "UTC", "2026-11-20T12:10:00Z")[0] == "2026-11-20T13:00+00:00"


@pytest.mark.parametrize("timezone", ["", "Mars/Phobos", "Europe", "/etc/passwd", "../UTC", "CEST+99", "\0"])
def test_what_is_no_time_zone_is_refused(timezone: str) -> None:
    with pytest.raises(Unprocessable, match="timezone"):
        next_tick("* * * * *", timezone, 0)


def test_an_expression_that_names_no_time_ends() -> None:
    """A fifth Sunday in the days of February that are the first."""
    assert next_tick("0 0 */31 2 SUN#5", "UTC", parse_ts("2026-11-20T12:00:00Z")) is None


@given(
    cron=st.lists(st.text("0123456789*/,-L#WMONSU", max_size=6), min_size=5, max_size=5).map(" ".join),
    timezone=st.sampled_from(["UTC", ZURICH, "America/New_York", "Australia/Lord_Howe"]),
    after=st.integers(parse_ts("2020-01-01T00:00:00Z"), parse_ts("2040-01-01T00:00:00Z")),
)
def test_anything_is_understood_or_refused(cron: str, timezone: str, after: int) -> None:
    """A tick lies in the future; nothing else is raised, and nothing hangs."""
    try:
        tick = next_tick(cron, timezone, after)
    except Unprocessable:
        return
    assert tick is None or tick > after


@given(after=st.integers(parse_ts("2026-01-01T00:00:00Z"), parse_ts("2028-01-01T00:00:00Z")))
def test_a_daily_job_is_never_more_than_a_day_and_an_hour_away(after: int) -> None:
    tick = next_tick("30 2 * * *", ZURICH, after)
    assert tick is not None
    assert 0 < tick - after <= 25 * HOUR_US
