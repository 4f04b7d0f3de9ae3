"""An agent that goes round in circles is told so, then ended; one that works or waits is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.agent.stuck import Circle, judge
from app.core.models import StepRecord, StepStatus

QUICK_US, LONG_US = 100_000, 20_000_000


def steps(
    words: str, *, took_us: int = QUICK_US, status: StepStatus = StepStatus.SUCCEEDED, told: str = "ok"
) -> list[StepRecord]:
    """Return one step a letter: equal letters are equal calls. `told` may hold `{n}`, its number."""
    return [
        StepRecord(
            run_id="r",
            step_id=f"c{n}-1",
            idx=n,
            tool="shell",
            args={"command": letter},
            status=status,
            attempt=1,
            started_at=n * LONG_US * 2,
            ended_at=n * LONG_US * 2 + took_us,
            for_model=told.format(n=n),
        )
        for n, letter in enumerate(words)
    ]


@pytest.mark.parametrize(
    ("words", "circle"),
    [
        ("", Circle.NONE),
        ("a", Circle.NONE),
        ("aa", Circle.NONE),
        ("aaa", Circle.NUDGE),
        ("xyaaaa", Circle.NUDGE),
        ("aaaaa", Circle.STUCK),
        ("aaaaab", Circle.NONE),
        ("abab", Circle.NONE),
        ("ababab", Circle.NUDGE),
        ("bababa", Circle.NUDGE),
        ("ababababab", Circle.STUCK),
        ("xababababab", Circle.STUCK),
        ("abcabcabcabcabc", Circle.NONE),
    ],
)
def test_equal_calls_with_equal_results_are_a_circle(words: str, circle: Circle) -> None:
    assert judge(steps(words)).circle is circle


def test_a_call_whose_result_changes_is_no_circle() -> None:
    assert judge(steps("aaaaaaaaaa", told="line {n}")).circle is Circle.NONE


@pytest.mark.parametrize(
    ("count", "circle"),
    [(3, Circle.NONE), (4, Circle.NUDGE), (5, Circle.NUDGE), (6, Circle.STUCK)],
)
def test_one_error_whatever_is_tried_is_a_circle(count: int, circle: Circle) -> None:
    tried = steps("abcdefgh"[:count], status=StepStatus.FAILED, told="No such file: data.csv")
    assert judge(tried).circle is circle


def test_equal_words_of_calls_that_succeed_are_no_error() -> None:
    assert judge(steps("abcdefgh", told="(no output)")).circle is Circle.NONE


def test_whoever_polls_a_slow_process_is_left_alone() -> None:
    assert judge(steps("aaaaaaaa", took_us=LONG_US)).circle is Circle.NONE
    assert judge([*steps("aaaa"), *steps("aa", took_us=LONG_US), *steps("aa")]).circle is Circle.NONE


def test_a_call_that_has_not_ended_does_not_count() -> None:
    *ended, last = steps("aaaaa")
    assert judge([*ended, replace(last, ended_at=None)]).circle is Circle.NUDGE


def test_the_model_is_told_what_it_repeats_and_what_to_do() -> None:
    nudge, stuck = judge(steps("aaa")), judge(steps("aaaaa"))
    assert nudge.text.startswith("The same call of shell had the same result 3 times in a row. Do something")
    assert stuck.text == "The same call of shell had the same result 5 times in a row."
