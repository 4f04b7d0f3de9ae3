"""The one way a run comes in and goes off: row first, then the push.

Everything that makes or starts a run (canonical routes, aliases, retries) ends here. Once the
row is committed the answer is a success: when Redis does not take the entry or the news, the
reconciler pushes it and watchers read the database.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from app.config import AgentSettings, Settings
from app.core.clock import now_us, parse_ts
from app.core.errors import Conflict, NotFound, StorageError, TooManyRequests, Unprocessable
from app.core.events import Event
from app.core.models import DEFINITION_FIELDS, Priority, Run, RunKind, RunStatus
from app.core.telemetry import get_logger
from app.db.run_store import Created, RunDraft
from app.plan.fenced_plans import AGENT, SMOKE, is_bare
from app.plan.model_names import ModelNames
from app.plan.projects import DEFAULT
from app.plan.run_fields import RunFields
from app.plan.steps import parse_steps
from app.plan.webhook_url import checked
from app.runs.replays import asks_for_replay, of_run, of_transcript
from app.runs.services import RUN_ID, Principal, Services

_log = get_logger(__name__)
_KEY_CHARS = 255
LETTER_KEY = "dead:"
"""The prefix of a dead letter's retry key; the rest names the letter and so the request."""
_MAX_DELAY_US = 366 * 24 * 3600 * 1_000_000
_TAKEN_AS_SENT = RunFields.model_fields.keys() & set(DEFINITION_FIELDS)
"""Fields of a body that a run takes over; `compose` replaces those that it has to check."""
_HASHED_ALWAYS = {
    *("prompt", "steps", "argv", "type", "command", "params", "project", "labels", "env"),
    *("timeout_s", "max_attempts", "workspace_from"),
}
"""The fields of 0.1.0. Later ones are left out of the hash at their defaults: keys of then still repeat."""


async def submit(
    services: Services, user: Principal, body: RunFields, *, start: bool, idempotency_key: str | None = None
) -> Created:
    """Make a run of a checked body; with `start` it is queued at once.

    Raises:
        Unprocessable: a tool, a limit or the combination of fields is wrong.
        NotFound: `workspace_from` is no run of the caller's.
        Conflict: the idempotency key was used with another body.
        TooManyRequests: the caller's backlog is full.
    """
    new = await compose(services, user, body, start=start)
    if idempotency_key is not None:
        key, request_hash = checked_key(idempotency_key), _hash(body, start=start)
        new = replace(new, idempotency_key=key, request_hash=request_hash)
    return await _create(services, new)


async def compose(services: Services, user: Principal, body: RunFields, *, start: bool) -> RunDraft:
    """Check what the body's model cannot, and return the run that it asks for; raises as `submit`."""
    run_id = str(uuid.uuid4())
    if asks_for_replay(body):
        return await _replay(services, user, body, run_id, start=start)
    kind, spec = _spec(body, services.models)
    earlier = await _earlier(services, user, body)
    if kind is RunKind.TASK:
        await _check_task(services, body)
    fields: dict[str, Any] = {
        "kind": kind,
        "spec": spec | ({"env": body.env} if body.env else {}),
        "workspace_from": earlier or await _source(services, user, "workspace_from", body.workspace_from),
        "agent": _agent(body, services.settings.agent) if spec.get("planner") == AGENT else None,
        "project": (body.project or DEFAULT) if kind is RunKind.TASK else None,
    }
    return _draft(services, user, body, run_id, start=start, **fields)


async def _replay(
    services: Services, user: Principal, body: RunFields, run_id: str, *, start: bool
) -> RunDraft:
    """Return the run that carries out another one again, with the replies that are recorded of it."""
    if body.replay_of is not None:
        parts = of_run(body, await _own(services, user, "replay_of", body.replay_of))
    else:
        parts = await of_transcript(body, run_id)
    files = await _source(services, user, "workspace_from", body.workspace_from)
    fields: dict[str, Any] = {
        "kind": RunKind.PROMPT,
        "spec": {"prompt": parts.prompt, "planner": AGENT} | ({"env": parts.env} if parts.env else {}),
        "workspace_from": files or parts.files_of,
        "agent": parts.agent,
        "project": None,
    }
    return _draft(services, user, body, run_id, start=start, transcript=parts.transcript, **fields)


def _draft(
    services: Services, user: Principal, body: RunFields, run_id: str, *, start: bool, **fields: Any
) -> RunDraft:
    common: dict[str, Any] = {
        "max_attempts": body.max_attempts or services.settings.runs.max_attempts,
        "timeout_s": _timeout(body, services.settings.runs.timeout_s),
        "priority": Priority(body.priority),
        "webhook_url": _webhook(body.webhook_url, services.settings),
    }
    return RunDraft(
        **{name: getattr(body, name) for name in _TAKEN_AS_SENT} | common | fields,
        run_id=run_id,
        user_id=user.user_id,
        start=start,
        run_at=_run_at(body.run_at),
    )


async def start_run(services: Services, run: Run) -> Run:
    """Queue a held run; a run that is queued or running already stays as it is."""
    now = now_us()
    changed = await services.runs.start(run.run_id, now)  # it has had its place in the backlog
    if changed.events and await _push(services, changed.run, now):
        await announce(services, changed.events)
    return changed.run


async def retry_run(services: Services, run: Run, key: str | None = None) -> Created:
    """Make a new run like one that ended, over the files that it left; the old one stays as it is.

    Two calls with the same `key` make one run.
    """
    if not run.status.terminal:
        raise Conflict(f"Run {run.run_id} is {run.status}; only a finished run can be retried.")
    return await _create(services, _like(run, key))


async def retried_before(services: Services, run: Run, key: str | None) -> Created | None:
    """Return the run that `retry_run` made with this key before, if it did."""
    return None if key is None else await services.runs.earlier(_like(run, key))


def _like(run: Run, key: str | None) -> RunDraft:
    began = run.started_at is not None or run.workspace_from is None
    definition = run.definition()
    # Its files hold what was uploaded for it; before its first attempt they lack the source's.
    definition["workspace_from"] = run.run_id if began else run.workspace_from
    return RunDraft(
        **definition,
        run_id=str(uuid.uuid4()),
        user_id=run.user_id,
        start=True,
        retry_of=run.run_id,
        idempotency_key=checked_key(key),
        request_hash=key if key is None or key.startswith(LETTER_KEY) else f"retry:{run.run_id}",
    )


async def announce(services: Services, events: Sequence[Event]) -> None:
    """Tell watchers of committed events; without Redis they find them in the database."""
    try:
        await services.publisher.announce(events)
    except StorageError as error:
        _log.warning("watchers not told, they will read the database", error=str(error))


async def _create(services: Services, new: RunDraft) -> Created:
    now = now_us()
    try:
        async with services.backlog.place(new.user_id):
            created = await services.runs.create(new, now)
    except TooManyRequests:
        earlier = await services.runs.earlier(new) if new.idempotency_key is not None else None
        if earlier is None:
            raise
        return earlier
    if created.fresh:
        _log.info("run created", run_id=new.run_id, user_id=new.user_id, kind=new.kind)
        if created.run.status is RunStatus.QUEUED:
            await _push(services, created.run, now)  # no signal: no client knows the new id yet
    return created


async def _push(services: Services, run: Run, now: int) -> bool:
    try:
        await services.queue.push_run(run, now)
    except StorageError as error:
        _log.warning("not pushed, the reconciler will", run_id=run.run_id, error=str(error))
        return False
    return True


def _spec(body: RunFields, models: ModelNames) -> tuple[RunKind, dict[str, Any]]:
    given = [name for name in ("prompt", "steps", "argv", "type") if getattr(body, name) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise Unprocessable(f"Send exactly one of prompt, steps, type and argv, not {got}.")
    if given[0] != "type":
        _no_task_fields(body)
    if body.prompt is not None:
        return RunKind.PROMPT, _prompt(body.prompt, body, models)
    for name in ("planner", "agent", "continue_of"):
        if getattr(body, name) is not None:
            raise Unprocessable(f"{name} goes with prompt only.")
    if body.argv is not None:
        return RunKind.ARGV, {"argv": body.argv}
    if body.steps is not None:
        parse_steps(body.steps)
        return RunKind.STEPS, {"steps": body.steps}
    if body.env:
        raise Unprocessable("env goes with prompt, steps and argv; a task gets its type's and its project's.")
    fields = {name: getattr(body, name) for name in ("project", "type", "command", "params")}
    return RunKind.TASK, {name: value for name, value in fields.items() if value is not None}


def _prompt(prompt: str, body: RunFields, models: ModelNames) -> dict[str, Any]:
    asked = [name for name in ("agent", "continue_of") if getattr(body, name) is not None]
    if body.planner == SMOKE:
        if asked:
            raise Unprocessable(f'{asked[0]} goes with a prompt that a model carries out, not with "smoke".')
        return {"prompt": prompt, "planner": SMOKE}
    if body.planner != AGENT and not asked and not is_bare(prompt):
        return {"prompt": prompt}
    models.check(body.agent and body.agent.model)
    return {"prompt": prompt, "planner": AGENT}


def _agent(body: RunFields, limits: AgentSettings) -> dict[str, Any] | None:
    """Return what is asked of the agent as its row keeps it; its budget is within the deployment's."""
    asked = {} if body.agent is None else body.agent.model_dump(exclude_unset=True)
    most = {
        "usd": ("AGENT_BUDGET_USD", limits.budget_usd),
        "tokens": ("AGENT_BUDGET_TOKENS", limits.budget_tokens),
        "calls": ("AGENT_MAX_CALLS", limits.max_calls),
        "tool_calls": ("AGENT_MAX_TOOL_CALLS", limits.max_tool_calls),
    }
    for name, wanted in (asked.get("budget") or {}).items():
        setting, cap = most[name]
        if wanted is not None and cap is not None and wanted > cap:
            raise Unprocessable(f"agent.budget.{name} must be at most {cap} ({setting}), not {wanted}.")
    return asked | ({} if body.continue_of is None else {"continue_of": body.continue_of}) or None


async def _earlier(services: Services, user: Principal, body: RunFields) -> str | None:
    """Return the run whose conversation and files the new one continues."""
    if body.continue_of is None:
        return None
    if body.workspace_from is not None:
        raise Unprocessable("continue_of brings the files along: leave out workspace_from.")
    earlier = await _own(services, user, "continue_of", body.continue_of)
    if earlier.spec.get("planner") != AGENT:
        raise Unprocessable("continue_of: no model carried out that run; use workspace_from for its files.")
    if not earlier.status.terminal:
        raise Conflict(
            f"continue_of: run {earlier.run_id} is {earlier.status}; send it a message "
            f"(POST /v1/runs/{earlier.run_id}/messages), or wait for its end.",
            code="not_finished",
        )
    return earlier.run_id


async def _check_task(services: Services, body: RunFields) -> None:
    """Hold a task to its declaration; its project must be here, unless an external service keeps them."""
    services.task_types.check(str(body.type), body.command, body.params or {})
    project = body.project or DEFAULT
    if not services.settings.projects.url and not await services.projects.exists(project):
        raise Unprocessable(
            f"There is no project {project[:64]!r}; an admin makes one with PUT /v1/projects/{{id}}.",
            code="unknown_project",
        )


def _no_task_fields(body: RunFields) -> None:
    for name in ("command", "params", "project"):
        if getattr(body, name) is not None:
            raise Unprocessable(f"{name} goes with type only.")


def _timeout(body: RunFields, cap: float) -> float:
    if body.timeout_s is not None and body.timeout_s > cap:
        raise Unprocessable(f"timeout_s must be at most {cap:g} (JOB_TIMEOUT_S), not {body.timeout_s:g}.")
    return body.timeout_s or cap


async def _source(services: Services, user: Principal, field: str, run_id: str | None) -> str | None:
    return None if run_id is None else (await _own(services, user, field, run_id)).run_id


async def _own(services: Services, user: Principal, field: str, run_id: str) -> Run:
    known = run_id.lower()
    found = await services.runs.get(known) if RUN_ID.fullmatch(known) else None
    if found is None or found.user_id != user.user_id:
        raise NotFound(f"{field}: there is no run {run_id[:64]!r} of yours.")
    return found


def checked_key(key: str | None) -> str | None:
    """Return an `Idempotency-Key` that can be kept; `Unprocessable` for any other."""
    if key is not None and not (0 < len(key) <= _KEY_CHARS and key.isprintable()):
        raise Unprocessable(f"Idempotency-Key must be 1 to {_KEY_CHARS} printable characters.")
    return key


def _run_at(time: str | None) -> int | None:
    if time is None:
        return None
    at = parse_ts(time.upper())
    if at > now_us() + _MAX_DELAY_US:
        raise Unprocessable("run_at must be at most one year ahead.")
    return at


def _webhook(url: str | None, settings: Settings) -> str | None:
    if url is None:
        return None
    if settings.webhooks.secret is None:
        raise Unprocessable("webhook_url: this server sends no webhooks, for it has no WEBHOOK_SECRET.")
    return checked(url, allow_private=settings.webhooks.allow_private)


def _hash(body: RunFields, *, start: bool) -> str:
    later = RunFields.model_fields.keys() - _HASHED_ALWAYS
    defaults = {name: RunFields.model_fields[name].get_default(call_default_factory=True) for name in later}
    unset = {name for name in later if getattr(body, name) == defaults[name]}
    fields = body.model_dump(exclude={"action", "planner", *unset}, warnings="none") | {"start": start}
    return hashlib.sha256(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)).hexdigest()
