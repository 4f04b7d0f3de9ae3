"""One line that a program printed, in memory, in the run's file and in a stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tailrun.process.lines import Level, Stream


class Fields(dict[str, Any]):
    """A dictionary whose text is JSON, so that `f"data: {entry.to_dict()}"` is what a browser can parse."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line without its end. `seq` counts from 1 within the run; `timestamp` is in UTC.

    `level` is `debug`, `info`, `warning` or `error`, `stream` is `stdout`, `stderr` or `system`
    (Tailrun itself). `cr`: a progress update that a later one replaces. `split`: a piece of a line
    over 1 MiB that continues in the next entry. Half of a surrogate pair (as in a name of `os.fsdecode`
    that is not UTF-8) becomes U+FFFD, for no server can send it.
    """

    timestamp: datetime
    message: str
    level: Level = Level.INFO
    stream: Stream = Stream.STDOUT
    seq: int = 0
    cr: bool = False
    split: bool = False

    def __post_init__(self) -> None:
        try:
            self.message.encode()
        except UnicodeEncodeError:
            whole = self.message.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            object.__setattr__(self, "message", whole)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON holds; `cr` and `split` only where they are true. Its `str` is JSON."""
        body = Fields(
            timestamp=stamp(self.timestamp),
            message=self.message,
            level=self.level.value,
            stream=self.stream.value,
        )
        body.update({name: True for name in ("cr", "split") if getattr(self, name)})
        return body

    def to_json(self) -> str:
        """Return the same as one line of JSON."""
        return str(self.to_dict())

    def to_text(self) -> str:
        """Return the entry as a line of the run's file, with its end."""
        return f"{self.seq} {stamp(self.timestamp)} {self.stream.value} {self.level.value} {self.message}\n"

    @classmethod
    def of_text(cls, text: str) -> LogEntry | None:
        """Read a line of the run's file; None if it is none."""
        try:
            seq, time, stream, level, message = text.split(" ", 4)
            return cls(datetime.fromisoformat(time), message, Level(level), Stream(stream), int(seq))
        except ValueError:
            return None


def stamp(moment: datetime) -> str:
    """Format a time in UTC as RFC 3339 with microseconds."""
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
