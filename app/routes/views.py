"""How things look in an answer: the one place that turns nouns into JSON.

Encoded with orjson and sent as they are; `app.routes.schemas` describes them for OpenAPI. A run has the
fields of `RunView` there, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from app.core.clock import format_ts
from app.core.models import Run, StepRecord
from app.db.token_store import Token
from app.routes.schemas import RunView


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with JSON; a line end at its end, for those who read it in a terminal."""
    return Response(orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE), status, headers, "application/json")


class Download(StreamingResponse):
    """A stream whose source is closed with it, also when the client leaves in the middle."""

    async def stream_response(self, send: Send) -> None:
        """Send what the source has."""
        async with aclosing(self.body_iterator):  # pyright: ignore[reportArgumentType]
            await super().stream_response(send)


def moment(us: int | None) -> str | None:
    """Format a time that may not have come yet."""
    return None if us is None else format_ts(us)


_RUN_FIELDS = [name for name in RunView.model_fields if name not in {"links", "usage"}]
_MICRO = 1_000_000


def run_view(run: Run) -> dict[str, Any]:
    """Return a run as every route shows it: the fields of `RunView`."""
    shown = {name: getattr(run, name) for name in _RUN_FIELDS}
    times = {name: moment(value) for name, value in shown.items() if name.endswith("_at")}
    return shown | times | {"usage": _usage(run), "links": links(run.run_id)}


def run_detail(run: Run) -> dict[str, Any]:
    """Return a run with what it was made from; its environment may hold secrets and stays here."""
    spec = {key: value for key, value in run.spec.items() if key != "env"}
    return {**run_view(run), "spec": spec, "agent": run.agent}


def _usage(run: Run) -> dict[str, Any] | None:
    """Return what an agent has spent; tokens without any cost are those of a model whose price is unknown."""
    if not run.spent_tokens:
        return None
    return {"tokens": run.spent_tokens, "cost_usd": run.spent_u / _MICRO if run.spent_u else None}


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
