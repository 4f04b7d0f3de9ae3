"""Every request of the API, described once and sent by either client. Pure: nothing is sent here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what to send, not how."""

    method: str
    path: str
    params: Mapping[str, str | list[str]] = field(default_factory=dict[str, "str | list[str]"])
    json: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])


def _some(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _params(**values: Any) -> dict[str, str]:
    return {name: str(value) for name, value in _some(**values).items()}


def _run(run_id: str, rest: str = "") -> str:
    return f"/v1/runs/{quote(run_id, safe='')}{rest}"


def create(body: dict[str, Any], idempotency_key: str | None) -> Call:
    """POST a new run."""
    return Call("POST", "/v1/runs", json=_some(**body), headers=_once(idempotency_key))


def _once(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def act(run_id: str, action: str, idempotency_key: str | None = None) -> Call:
    """Start, cancel or retry a run."""
    return Call("POST", _run(run_id, f"/{action}"), headers=_once(idempotency_key))


def get(run_id: str, logs: int | None) -> Call:
    """Get one run, with its last `logs` events if that is given."""
    return Call("GET", _run(run_id), _params(logs=logs))


def runs(status: str | None, limit: int | None, cursor: str | None, *, all_users: bool) -> Call:
    """List runs, newest first."""
    everyone = "1" if all_users else None
    return Call("GET", "/v1/runs", _params(status=status, limit=limit, cursor=cursor, all=everyone))


def approvals(run_id: str | None, *, all_users: bool) -> Call:
    """List what a run asks for, or (None) all that waits for a decision."""
    if run_id is not None:
        return Call("GET", _run(run_id, "/approvals"))
    return Call("GET", "/v1/approvals", _params(all="1" if all_users else None))


def decide(run_id: str, step: str, body: dict[str, Any]) -> Call:
    """Approve or deny a step."""
    return Call("POST", _run(run_id, f"/approvals/{quote(step, safe='')}"), json=_some(**body))


def say(run_id: str, content: str, mode: str, idempotency_key: str | None) -> Call:
    """Write to an agent."""
    body = {"content": content, "mode": mode}
    return Call("POST", _run(run_id, "/messages"), json=body, headers=_once(idempotency_key))


def model_calls(run_id: str, after: int, limit: int | None) -> Call:
    """Page through the calls of the model that a run has made."""
    return Call("GET", _run(run_id, "/calls"), _params(after=after, limit=limit))


def model_call(run_id: str, n: int) -> Call:
    """Get one call of the model, with what was asked."""
    return Call("GET", _run(run_id, f"/calls/{n}"))


def transcript(run_id: str) -> Call:
    """Get what was recorded of an agent's run."""
    return Call("GET", _run(run_id, "/transcript"))


def models() -> Call:
    """List the language models that a run may name."""
    return Call("GET", "/v1/models")


def steps(run_id: str) -> Call:
    """List the records of a run's steps."""
    return Call("GET", _run(run_id, "/steps"))


def logs(run_id: str, after: int, limit: int, filters: dict[str, str | None]) -> Call:
    """Page through a run's events."""
    return Call("GET", _run(run_id, "/logs"), _params(after=after, limit=limit, **filters))


def stream(run_id: str, params: dict[str, str], last_id: int | None) -> Call:
    """Follow a run's events."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if last_id is not None:
        headers["Last-Event-ID"] = str(last_id)
    return Call("GET", _run(run_id, "/stream"), params, headers=headers)


def files(run_id: str, prefix: str | None) -> Call:
    """List a run's files."""
    return Call("GET", _run(run_id, "/files"), _params(prefix=prefix))


def file(method: str, run_id: str, path: str) -> Call:
    """Get or delete one file."""
    return Call(method, _run(run_id, f"/files/{quote(path, safe='/')}"))


def upload(run_id: str, path: str, size: int | None, *, executable: bool | None) -> Call:
    """Put one file; with its size given, the server refuses one that is too large before reading it."""
    headers = {} if size is None else {"Content-Length": str(size)}
    mode = None if executable is None else str(executable).lower()
    return Call(
        "PUT", _run(run_id, f"/files/{quote(path, safe='/')}"), _params(executable=mode), headers=headers
    )


def task_types() -> Call:
    """List the declared task types."""
    return Call("GET", "/v1/task-types")


def queue() -> Call:
    """Get the depths of the queue."""
    return Call("GET", "/v1/queue")


def dead(limit: int | None, cursor: str | None) -> Call:
    """List the dead letters."""
    return Call("GET", "/v1/dead", _params(limit=limit, cursor=cursor))


def dead_show(name: str, logs: int | None) -> Call:
    """Get one dead letter, with its run and the end of its log."""
    return Call("GET", f"/v1/dead/{quote(name, safe='')}", _params(logs=logs))


def dead_retry(run_id: str) -> Call:
    """Make a new run of a dead letter."""
    return Call("POST", f"/v1/dead/{quote(run_id, safe='')}/retry")


def dead_drop(run_id: str) -> Call:
    """Remove a dead letter."""
    return Call("DELETE", f"/v1/dead/{quote(run_id, safe='')}")


def dead_retry_many(run_ids: list[str] | None) -> Call:
    """Make new runs of many dead letters, or of all."""
    return Call("POST", "/v1/dead/retry", json={"all": True} if run_ids is None else {"run_ids": run_ids})


def dead_drop_many(names: list[str] | None) -> Call:
    """Remove many dead letters, or all."""
    return Call("DELETE", "/v1/dead", {"all": "1"} if names is None else {"id": names})


def schedules(limit: int | None, cursor: str | None, *, all_users: bool) -> Call:
    """List schedules, newest first."""
    everyone = "1" if all_users else None
    return Call("GET", "/v1/schedules", _params(limit=limit, cursor=cursor, all=everyone))


def create_schedule(body: dict[str, Any], idempotency_key: str | None) -> Call:
    """Make a schedule."""
    return Call("POST", "/v1/schedules", json=_some(**body), headers=_once(idempotency_key))


def delete_schedule(schedule_id: str) -> Call:
    """Delete a schedule."""
    return Call("DELETE", f"/v1/schedules/{quote(schedule_id, safe='')}")


def tokens() -> Call:
    """List the tokens, without their secrets."""
    return Call("GET", "/v1/tokens")


def create_token(body: dict[str, Any]) -> Call:
    """Make a token; the answer is the only time that its secret is shown."""
    return Call("POST", "/v1/tokens", json=_some(**body))


def revoke_token(token_id: str) -> Call:
    """Revoke a token."""
    return Call("DELETE", f"/v1/tokens/{quote(token_id, safe='')}")
