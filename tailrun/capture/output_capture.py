"""Keeps and streams what runs print: the last lines in memory, all of them in a file per run."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tailrun.capture.entries import LogEntry
from tailrun.capture.log_file import LogFile
from tailrun.capture.results import Done, Entries
from tailrun.capture.run_output import RunOutput
from tailrun.process.levels import level_of
from tailrun.process.lines import Level, Line, Stream

_MOST_CHARS = 64_000_000


class OutputCapture:
    """The output of any number of runs.

    A run begins with its first line, or with `open_run`. Every method may be called from any
    thread, and by many at once. What is complete when a method returns may be awaited as well.

    Args:
        log_dir: where each run has its file, `<run_id>.log`; made when it is needed.
        max_buffer_size: lines of a run that stay in memory (at most 64 million characters);
            older ones are in the file only.
        max_file_bytes: at which size the file is rotated.
        backups: rotated files that are kept beside the newest one; older ones are deleted.
        keepalive_s: a stream for SSE on which nothing came for so long gets a sign of life.
    """

    def __init__(
        self,
        log_dir: str | Path = "logs",
        max_buffer_size: int = 10_000,
        *,
        max_file_bytes: int = 10_000_000,
        backups: int = 9,
        keepalive_s: float = 30,
    ) -> None:
        if max_buffer_size < 1:
            raise ValueError(f"max_buffer_size must be at least 1, not {max_buffer_size}")
        self.log_dir = Path(log_dir)
        self.max_buffer_size = max_buffer_size
        self._max_file_bytes, self._backups = max_file_bytes, backups
        self._keepalive_s = keepalive_s
        self._lock = threading.Lock()
        self._runs: dict[str, RunOutput] = {}

    # -- what writes --------------------------------------------------------------------

    def open_run(self, run_id: str) -> None:
        """Let a run begin, so that it can be followed before it prints anything."""
        self._run(run_id).resume()

    def append_line(
        self, run_id: str, line: str, stream: str = Stream.STDOUT, level: str | None = None
    ) -> Done:
        """Add a line, without the line end that it may have; its blanks stay.

        A text of several lines is several entries. Without `level` it is read from the line:
        `ERROR: x`, `[WARN] x`, `level=info`, `{"level": "error"}`; else it is `info`.
        """
        now, source = datetime.now(UTC), Stream(stream)
        texts = [text.removesuffix("\r") for text in line.removesuffix("\n").split("\n")]
        entries = [LogEntry(now, text, Level(level) if level else level_of(text), source) for text in texts]
        self._run(run_id).append(entries)
        return Done()

    def append_lines(self, run_id: str, lines: Sequence[Line]) -> None:
        """Add what a program printed; one write to the file for all."""
        now = datetime.now(UTC)
        entries = [
            LogEntry(now, line.content, line.level, line.stream, cr=line.cr, split=line.split)
            for line in lines
        ]
        self._run(run_id).append(entries)

    def end_run(self, run_id: str, exit_code: int | None = None) -> None:
        """Mark the run as complete: its streams end once they have sent the last line."""
        self._run(run_id).end(exit_code)

    def cleanup_run(self, run_id: str) -> Done:
        """Forget a run: its lines leave memory and its streams end; its file stays."""
        with self._lock:
            run = self._runs.pop(run_id, None)
        if run is not None:
            run.end(run.exit_code)
        return Done()

    def close(self) -> None:
        """Forget every run; for the end of a program, or of a test."""
        for run_id in tuple(self._runs):
            self.cleanup_run(run_id)

    # -- what reads ---------------------------------------------------------------------

    def get_logs(self, run_id: str) -> Entries:
        """Return the last lines of a run; those of its file, once `cleanup_run` has forgotten it.

        Raises:
            LookupError: there is no such run.
        """
        with self._lock:
            run = self._runs.get(run_id)
        return Entries(run.entries() if run is not None else self._kept(run_id))

    def subscribe(
        self, run_id: str, after: int = 0, *, pause_s: float = 3600
    ) -> AsyncGenerator[LogEntry | None]:
        """Follow a run: the lines behind number `after` that are there, then each new one, to its end.

        Yields None whenever nothing came for `pause_s` seconds.

        Raises:
            LookupError: there is no such run; raised by the call itself, before the first line.
        """
        return self._found(run_id).follow(after, pause_s)

    async def subscribe_sse(self, run_id: str, after: int = 0) -> AsyncGenerator[LogEntry]:
        """Follow a run as entries, for an endpoint that makes the events itself of `entry.to_dict()`.

        After `keepalive_s` silent seconds comes an entry `# keepalive` without a number (`seq` is 0),
        which is not in the log.

        Raises:
            LookupError: there is no such run; at the first entry, so that a task made just before it
                has begun its run.
        """
        await asyncio.sleep(0)
        following = self._found(run_id).follow(after, self._keepalive_s)
        try:
            async for entry in following:
                yield entry or LogEntry(datetime.now(UTC), "# keepalive", stream=Stream.SYSTEM)
        finally:
            await following.aclose()

    def sse_frames(self, run_id: str, after: int = 0) -> AsyncGenerator[str]:
        """Follow a run as server-sent events, for a response of type `text/event-stream`.

        A line is `id: <number>` and `data: <LogEntry as JSON>`; the end is an event of the name
        `end` with `data: {"exit_code": …}`; silence gets a comment.

        Raises:
            LookupError: there is no such run; raised by the call itself, before the response begins.
        """
        return _frames(self._found(run_id), after, self._keepalive_s)

    # -- inside -------------------------------------------------------------------------

    def _run(self, run_id: str) -> RunOutput:
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                run = self._runs[run_id] = self._new(run_id)
            return run

    def _new(self, run_id: str) -> RunOutput:
        return RunOutput(self._file(run_id), most_lines=self.max_buffer_size, most_chars=_MOST_CHARS)

    def _file(self, run_id: str) -> LogFile:
        return LogFile(self.log_dir, run_id, max_bytes=self._max_file_bytes, backups=self._backups)

    def _found(self, run_id: str) -> RunOutput:
        with self._lock:
            run = self._runs.get(run_id)
        return run if run is not None else self._ended(run_id)

    def _ended(self, run_id: str) -> RunOutput:
        """Read a run that is no longer in memory from its file; the result is not kept."""
        kept = self._kept(run_id)
        run = self._new(run_id)
        run.recall(kept)
        return run

    def _kept(self, run_id: str) -> list[LogEntry]:
        try:
            file = self._file(run_id)
        except ValueError as error:
            raise LookupError(str(error)) from error
        if not file.exists():
            raise LookupError(f"there is no run {run_id!r} in {self.log_dir}")
        return file.read(self.max_buffer_size)


async def _frames(run: RunOutput, after: int, keepalive_s: float) -> AsyncGenerator[str]:
    following = run.follow(after, keepalive_s)
    try:
        async for entry in following:
            yield ": keepalive\n\n" if entry is None else f"id: {entry.seq}\ndata: {entry.to_json()}\n\n"
        yield f"event: end\ndata: {json.dumps({'exit_code': run.exit_code})}\n\n"
    finally:
        await following.aclose()
