"""How things look in an answer: the one place that turns nouns into JSON.

Encoded with orjson and sent as they are; `app.routes.schemas` describes them for OpenAPI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Response

from app.core.clock import format_ts
from app.core.models import Run, StepRecord
from app.db.token_store import Token


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with JSON; a line end at its end, for those who read it in a terminal."""
    return Response(orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE), status, headers, "application/json")


def moment(us: int | None) -> str | None:
    """Format a time that may not have come yet."""
    return None if us is None else format_ts(us)


def run_view(run: Run) -> dict[str, Any]:
    """Return a run as every route shows it."""
    return {
        "run_id": run.run_id,
        "user_id": run.user_id,
        "kind": run.kind,
        "planner": run.planner,
        "status": run.status,
        "attempt": run.attempt,
        "retries": run.retries,
        "redeliveries": run.redeliveries,
        "max_attempts": run.max_attempts,
        "timeout_s": run.timeout_s,
        "created_at": moment(run.created_at),
        "queued_at": moment(run.queued_at),
        "started_at": moment(run.started_at),
        "ended_at": moment(run.ended_at),
        "next_attempt_at": moment(run.next_attempt_at),
        "cancel_requested_at": moment(run.cancel_requested_at),
        "exit_code": run.exit_code,
        "error": run.error,
        "log_lines": run.log_lines,
        "log_size": run.log_size,
        "truncated": run.truncated,
        "last_seq": run.last_seq,
        "labels": run.labels,
        "retry_of": run.retry_of,
        "workspace_from": run.workspace_from,
        "project": run.project,
        "type": run.type,
        "priority": run.priority,
        "retry_on": run.retry_on,
        "run_at": moment(run.run_at),
        "webhook_url": run.webhook_url,
        "links": links(run.run_id),
    }


def run_detail(run: Run) -> dict[str, Any]:
    """Return a run with what it was made from; its environment may hold secrets and stays here."""
    return {**run_view(run), "spec": {key: value for key, value in run.spec.items() if key != "env"}}


def links(run_id: str) -> dict[str, str]:
    """Return where to go on from a run."""
    here = f"/v1/runs/{run_id}"
    return {"self": here} | {name: f"{here}/{name}" for name in ("stream", "logs", "steps", "files")}


def step_view(step: StepRecord) -> dict[str, Any]:
    """Return what became of a step."""
    return {
        "id": step.step_id,
        "idx": step.idx,
        "tool": step.tool,
        "args": step.args,
        "status": step.status,
        "attempt": step.attempt,
        "started_at": moment(step.started_at),
        "ended_at": moment(step.ended_at),
        "exit_code": step.exit_code,
        "result": step.result,
        "error": step.error,
    }


def token_view(token: Token) -> dict[str, Any]:
    """Return a token without its secret."""
    return {
        "token_id": token.token_id,
        "user_id": token.user_id,
        "scope": token.scope,
        "name": token.name,
        "created_at": moment(token.created_at),
        "expires_at": moment(token.expires_at),
        "revoked_at": moment(token.revoked_at),
    }
