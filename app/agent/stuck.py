"""Whether an agent goes round in circles, judged by the calls of tools that it has made.

A loop is the same call with the same result again and again, two such calls in turn, or one error whatever
is tried. It costs money and comes to no end by itself. The model is told first, since many find a way out;
then the run ends. A call that took long is the opposite of a loop: whoever polls a slow process waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

from app.core.models import StepRecord, StepStatus

_LONG_US = 20_000_000
_WINDOW = 20
"""Of the newest calls; no rule looks farther back."""


class Circle(Enum):
    """Whether an agent works, is told that it repeats itself, or is ended."""

    NONE = 0
    NUDGE = 1
    STUCK = 2


@dataclass(frozen=True, slots=True)
class Judgement:
    """How an agent gets on; `text` is what the model is told, or why the run ends."""

    circle: Circle
    text: str = ""


@dataclass(frozen=True, slots=True)
class _Rule:
    """What is counted from the newest call on, and how often it may come."""

    nudge: int
    stuck: int
    said: str


_SAME = _Rule(3, 5, "The same call of {tool} had the same result {count} times in a row.")
_PAIR = _Rule(3, 5, "The same two calls, of {other} and {tool}, had the same results {count} times in turn.")
_ERROR = _Rule(4, 6, "The last {count} calls ended with the same error.")
_ADVICE = "Do something else, or end the task and say what is in the way."


def judge(steps: Sequence[StepRecord]) -> Judgement:
    """Judge the calls of an agent, oldest first; a call that has not ended is left out."""
    ended = [step for step in steps[-_WINDOW:] if step.ended_at is not None]
    quick = list(takewhile(lambda step: not _took_long(step), reversed(ended)))
    if not quick:
        return Judgement(Circle.NONE)
    marks = [_mark(step) for step in quick]
    names = {"tool": quick[0].tool, "other": quick[1].tool if len(quick) > 1 else ""}
    found = (
        (_SAME, _repeats(marks, 1)),
        (_PAIR, _repeats(marks, 2) if len(set(marks[:2])) == 2 else 0),  # noqa: PLR2004 - a pair
        (_ERROR, _repeats([_error(step) for step in quick], 1) if _error(quick[0]) else 0),
    )
    for circle in (Circle.STUCK, Circle.NUDGE):
        for rule, count in found:
            if count >= (rule.stuck if circle is Circle.STUCK else rule.nudge):
                said = rule.said.format(count=count, **names)
                return Judgement(circle, said if circle is Circle.STUCK else f"{said} {_ADVICE}")
    return Judgement(Circle.NONE)


def _took_long(step: StepRecord) -> bool:
    return step.ended_at is not None and step.ended_at - step.started_at >= _LONG_US


def _mark(step: StepRecord) -> tuple[str, str, str | None]:
    return (step.tool, repr(sorted(step.args.items())), step.for_model)


def _error(step: StepRecord) -> str | None:
    return step.for_model if step.status is not StepStatus.SUCCEEDED else None


def _repeats(marks: Sequence[object], length: int) -> int:
    """Return how often the first `length` marks follow each other."""
    pieces = [marks[at : at + length] for at in range(0, len(marks) - length + 1, length)]
    return sum(1 for _ in takewhile(lambda piece: piece == pieces[0], pieces))
