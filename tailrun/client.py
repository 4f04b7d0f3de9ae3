"""The client for programs without asyncio.

Generated from `async_client.py` by `scripts/sync_client.py`: change that one, then run the script.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import httpx2

from tailrun import calls
from tailrun.bodies import (
    PIECE_BYTES,
    Content,
    Items,
    Json,
    Page,
    authorization,
    base_url,
    bytes_left,
    check,
    is_executable,
    no_address,
    read_json,
    too_short,
    unreachable,
)
from tailrun.errors import TailrunError
from tailrun.events import Event
from tailrun.follow import SILENCE_S, Filters, Follower, OnReconnect


class Client:
    """A connection to one Tailrun. Runs and the like are plain dicts, as `docs/openapi.yaml` has them.

    Raises `Unusable` where nothing can be sent, `Unreachable` when there is no answer, and the `APIError`
    of the status otherwise.
    `timeout_s` bounds a request, not a stream. Not for use by several threads at once.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float = 30.0) -> None:
        self.url = base_url(url)
        try:
            self._http = httpx2.Client(
                base_url=self.url,
                headers={"Authorization": authorization(token)},
                timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            )
        except httpx2.InvalidURL as error:
            raise no_address(self.url) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Runs

    def create(
        self,
        *,
        prompt: str | None = None,
        steps: Items | None = None,
        argv: list[str] | None = None,
        start: bool = True,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Json:
        """Make a run of exactly one of `prompt`, `steps`, `argv`; hold it if not `start`.

        `fields` are the others of the request: `labels`, `timeout_s`, `env`, `agent`, `continue_of` …
        """
        body = {"prompt": prompt, "steps": steps, "argv": argv, "start": start, **fields}
        return self._json(calls.create(body, idempotency_key))

    def start(self, run_id: str) -> Json:
        """Start a held run; starting it again changes nothing."""
        return self._json(calls.act(run_id, "start"))

    def cancel(self, run_id: str) -> Json:
        """Ask for the end of a run; of a finished one this changes nothing."""
        return self._json(calls.act(run_id, "cancel"))

    def retry(self, run_id: str, *, idempotency_key: str | None = None) -> Json:
        """Make a new run like a finished one."""
        return self._json(calls.act(run_id, "retry", idempotency_key))

    def get(self, run_id: str, *, logs: int | None = None) -> Json:
        """Get a run, with its last `logs` events if that is given."""
        return self._json(calls.get(run_id, logs))

    def list(
        self,
        *,
        status: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        all_users: bool = False,
    ) -> Json:
        """Get a page of runs, newest first: `items`, and `next` for the next page's `cursor`.

        `all_users` needs a token of scope admin.
        """
        return self._json(calls.runs(status, limit, cursor, all_users=all_users))

    def steps(self, run_id: str) -> Items:
        """Get the records of a run's steps."""
        return self._items(calls.steps(run_id))

    # Agents

    def models(self) -> Items:
        """List the language models that a run may name, the default one first."""
        return self._items(calls.models())

    def approvals(self, run_id: str | None = None, *, all_users: bool = False) -> Items:
        """List what a run asks for, decided or not; without a run, all that waits for your decision."""
        return self._items(calls.approvals(run_id, all_users=all_users))

    def decide(
        self, run_id: str, step: str, *, approve: bool, args_sha256: str, note: str | None = None
    ) -> Json:
        """Approve or deny a step for exactly the arguments that you looked at (`args_sha256`)."""
        decision = "approved" if approve else "denied"
        body = {"decision": decision, "args_sha256": args_sha256, "note": note}
        return self._json(calls.decide(run_id, step, body))

    def say(
        self, run_id: str, content: str, *, interrupt: bool = False, idempotency_key: str | None = None
    ) -> Json:
        """Write to an agent, or answer its question; `interrupt`: denies what waits for an approval."""
        mode = "interrupt" if interrupt else "next"
        return self._json(calls.say(run_id, content, mode, idempotency_key))

    def calls(self, run_id: str, *, after: int = 0, limit: int | None = None) -> Json:
        """Get a page of a run's calls of its model: `items`, and `next` for the next page's `after`."""
        return self._json(calls.model_calls(run_id, after, limit))

    def call(self, run_id: str, n: int) -> Json:
        """Get one call of the model, with what was asked and the reply."""
        return self._json(calls.model_call(run_id, n))

    def transcript(self, run_id: str) -> Generator[bytes]:
        """Yield what was recorded of an agent's run, in pieces: lines of JSON."""
        with self._open(calls.transcript(run_id)) as response:
            yield from response.iter_bytes()

    # Logs

    def logs(
        self,
        run_id: str,
        *,
        after: int = 0,
        limit: int = 1000,
        level: str | None = None,
        stream: str | None = None,
        q: str | None = None,
    ) -> Page:
        """Get a page of events above `after`, and the next page's `after`.

        That is None once the run has ended and this was all; while it runs, an empty page means
        that there is nothing more yet.
        """
        filters = {"level": level, "stream": stream, "q": q}
        page = self._json(calls.logs(run_id, after, limit, filters))
        return [Event.of(body) for body in page["events"]], page["next_after"]

    def stream(
        self,
        run_id: str,
        after: int = 0,
        *,
        tail: int | None = None,
        level: str | None = None,
        stream: str | None = None,
        patience_s: float = 60.0,
        on_reconnect: OnReconnect | None = None,
    ) -> Generator[Event]:
        """Yield the events above `after` as they happen, up to and with `end`.

        Connects again by itself; raises `Unreachable` after `patience_s` without a server.
        Leave the loop early only inside `contextlib.closing`, which closes the connection.
        """
        follower = Follower(run_id, after, Filters(level, stream, tail), patience_s, on_reconnect)
        while not follower.ended:
            error = None
            try:
                with closing(self._connection(follower)) as events:
                    yield from events
            except TailrunError as caught:
                error = caught
            if not follower.ended:
                time.sleep(follower.pause(error, time.monotonic()))

    def _connection(self, follower: Follower) -> Generator[Event]:
        with self._open(follower.call(), read_timeout_s=SILENCE_S) as response:
            follower.connected(response.status_code)
            for piece in response.iter_bytes():
                yield from follower.feed(piece)
                if follower.ended:
                    return

    # Files

    def files(self, run_id: str, prefix: str | None = None) -> Items:
        """List a run's files: `path`, `size` and so on."""
        return self._items(calls.files(run_id, prefix))

    def upload(self, run_id: str, path: str, content: Content, *, executable: bool | None = None) -> Json:
        """Store a file in the run's workspace; a binary file is sent from its position on.

        `executable` None: as the local file is (a `Path`), else as the file that is replaced.
        """
        if isinstance(content, Path):
            mode = is_executable(content) if executable is None else executable
            with content.open("rb") as file:
                return self.upload(run_id, path, file, executable=mode)
        if isinstance(content, bytes):
            return self._json(calls.upload(run_id, path, len(content), executable=executable), content)
        size = bytes_left(content)
        call = calls.upload(run_id, path, size, executable=executable)
        return self._json(call, _pieces(content, size))

    def file(self, run_id: str, path: str) -> Json:
        """Describe a file without its content: `path`, `size`, `executable`."""
        headers = (self._send(calls.file("HEAD", run_id, path))).headers
        runs = {"true": True, "false": False}.get(headers.get("x-executable", ""))
        return {"path": path, "size": int(headers.get("content-length", 0)), "executable": runs}

    def download(self, run_id: str, path: str) -> Generator[bytes]:
        """Yield a file's bytes in pieces."""
        with self._open(calls.file("GET", run_id, path)) as response:
            yield from response.iter_bytes()

    def delete_file(self, run_id: str, path: str) -> None:
        """Remove a file."""
        self._send(calls.file("DELETE", run_id, path))

    # Queue, dead letters, schedules, tokens

    def task_types(self) -> Items:
        """Get the declared task types, with their commands and parameters."""
        return self._items(calls.task_types())

    def queue(self) -> Json:
        """Get the depths of the queue."""
        return self._json(calls.queue())

    def dead(self, *, limit: int | None = None, cursor: str | None = None) -> Json:
        """Get a page of dead letters, newest first."""
        return self._json(calls.dead(limit, cursor))

    def dead_show(self, name: str, *, logs: int | None = None) -> Json:
        """Get a dead letter by its id or its run's, with the run and its last `logs` events."""
        return self._json(calls.dead_show(name, logs))

    def dead_retry(self, run_id: str) -> Json:
        """Make a new run of a dead letter."""
        return self._json(calls.dead_retry(run_id))

    def dead_drop(self, run_id: str) -> None:
        """Remove a dead letter."""
        self._send(calls.dead_drop(run_id))

    def dead_retry_many(self, run_ids: Sequence[str] | None = None) -> Json:
        """Make new runs of the dead letters of these runs, or of all that you may see.

        One call comes to 200 at most: while `left` is not 0, call again.
        """
        return self._json(calls.dead_retry_many(None if run_ids is None else [*run_ids]))

    def dead_drop_many(self, names: Sequence[str] | None = None) -> int:
        """Remove the dead letters with these ids (theirs or their runs'), or all; return how many."""
        answer = self._json(calls.dead_drop_many(None if names is None else [*names]))
        return answer["dropped"]

    def schedules(
        self, *, limit: int | None = None, cursor: str | None = None, all_users: bool = False
    ) -> Json:
        """Get a page of schedules, newest first; `all_users` needs a token of scope admin."""
        return self._json(calls.schedules(limit, cursor, all_users=all_users))

    def create_schedule(
        self, *, cron: str, run: Json, timezone: str | None = None, idempotency_key: str | None = None
    ) -> Json:
        """Make a schedule: `run` is made, as `create` takes it, whenever `cron` is due in `timezone`."""
        body = {"cron": cron, "timezone": timezone, "run": run}
        return self._json(calls.create_schedule(body, idempotency_key))

    def delete_schedule(self, schedule_id: str) -> None:
        """Delete a schedule; the runs that it made stay."""
        self._send(calls.delete_schedule(schedule_id))

    def tokens(self) -> Items:
        """List the tokens, without their secrets."""
        return self._items(calls.tokens())

    def create_token(self, **fields: Any) -> Json:
        """Make a token (`user_id`, `scope`, `name`); the answer alone has its secret."""
        return self._json(calls.create_token(fields))

    def revoke_token(self, token_id: str) -> None:
        """Revoke a token."""
        self._send(calls.revoke_token(token_id))

    # Sending

    def _json(self, call: calls.Call, content: bytes | Iterator[bytes] | None = None) -> Json:
        response = self._send(call, content)
        return read_json(self.url, response.content)

    def _items(self, call: calls.Call) -> Items:
        answer = self._json(call)
        return cast("Items", answer["items"])

    def _send(self, call: calls.Call, content: bytes | Iterator[bytes] | None = None) -> httpx2.Response:
        try:
            response = self._http.request(
                call.method,
                call.path,
                params=call.params,
                headers=call.headers,
                json=call.json,
                content=content,
            )
        except httpx2.RequestError as error:
            raise unreachable(self.url, error) from error
        check(response.status_code, response.content, response.headers)
        return response

    @contextmanager
    def _open(self, call: calls.Call, read_timeout_s: float = 30.0) -> Generator[httpx2.Response]:
        timeout = httpx2.Timeout(read_timeout_s, connect=10.0)
        sent = self._http.stream(
            call.method, call.path, params=call.params, headers=call.headers, timeout=timeout
        )
        try:
            with sent as response:
                if response.status_code >= 400:  # noqa: PLR2004
                    check(response.status_code, response.read(), response.headers)
                yield response
        except httpx2.RequestError as error:
            raise unreachable(self.url, error) from error


def _pieces(file: BinaryIO, size: int | None) -> Iterator[bytes]:
    """Read the `size` bytes that were announced, although the file may grow; without a size, all."""
    left = sys.maxsize if size is None else size
    while piece := file.read(min(left, PIECE_BYTES)):
        left -= len(piece)
        yield piece
    if size is not None and left:
        raise too_short(left)
