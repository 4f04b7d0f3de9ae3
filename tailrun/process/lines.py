"""Lines of a program's output: where each came from, how severe it is, and who takes them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol


class Level(StrEnum):
    """Severity of a log line, lowest first."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Stream(StrEnum):
    """Where a line came from: the program's two pipes, Tailrun itself, or a language model."""

    STDOUT = "stdout"
    STDERR = "stderr"
    SYSTEM = "system"
    MODEL = "model"
    REASONING = "reasoning"


class Line(NamedTuple):
    """One line of a program's output, without its line end.

    `cr` marks a progress update (ended by a carriage return: a later one replaces it),
    `split` a piece of a line that was too long and continues in the next piece. A tuple, because
    one is made for every line that is printed: a frozen dataclass costs three times as much.
    `src` is where the line was in the program's own log, if there is one to continue from:
    it is committed with the line, so that the next attempt knows from where.
    """

    stream: Stream
    content: str
    level: Level = Level.INFO
    cr: bool = False
    split: bool = False
    src: str | None = None


class LineSink(Protocol):
    """Takes lines in order; awaiting it is the backpressure that leaves the pipe unread."""

    async def __call__(self, lines: Sequence[Line], /) -> None: ...

    async def gap(self, lost: int, why: str) -> None:
        """Report that `lost` lines (0: an unknown number) are missing here."""
        ...
