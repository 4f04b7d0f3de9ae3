"""A run's fields are written down once: the table, the rows and the answers follow from the dataclass."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from sqlalchemy import Table

from app.core.agent_records import (
    Approval,
    CallPurpose,
    CallRecord,
    CallStatus,
    Decision,
    InboxMessage,
    MessageMode,
)
from app.core.models import DEFINITION_FIELDS, Priority, Run, RunKind, RunStatus, StepRecord, StepStatus
from app.db.row_codec import RowCodec
from app.db.run_create import RunDraft
from app.db.run_queries import RUN_ROW, STEP_ROW
from app.db.tables import approvals, inbox, model_calls, runs, steps
from app.plan.run_fields import RunFields
from app.routes.schemas import RunView
from app.routes.views import run_view
from app.runs import submit

ROW_ONLY = {"idempotency_key", "request_hash", "log_stage"}
"""Columns that no answer shows and no worker needs."""
NOT_SHOWN = {"spec", "worker_id", "agent"} | {"spent_u", "spent_tokens"}
"""What a list of runs leaves out; a run's own page has the spec, and `usage` is what was spent."""

WHOLE = Run(
    run_id="r",
    user_id="ann",
    kind=RunKind.TASK,
    status=RunStatus.FAILED,
    spec={"type": "report", "params": {"a": [1, None]}},
    created_at=1,
    attempt=2,
    worker_id="w",
    planner="smoke",
    retries=3,
    redeliveries=4,
    max_attempts=5,
    timeout_s=6.5,
    queued_at=7,
    started_at=8,
    ended_at=9,
    next_attempt_at=10,
    cancel_requested_at=11,
    exit_code=12,
    error={"code": "exit_nonzero"},
    log_lines=13,
    log_size=14,
    truncated=True,
    last_seq=15,
    labels={"team": "docs"},
    retry_of="q",
    workspace_from="p",
    project="default",
    type="report",
    priority=Priority.HIGH,
    retry_on=["timeout"],
    run_at=16,
    webhook_url="https://example.com",
    agent={"model": "some", "budget": {"usd": 0}},
    result={"text": "done"},
    spent_u=17,
    spent_tokens=18,
    waiting_for="approval",
)
STEP = StepRecord(
    *("r", "c1-0", 0, "shell", {"a": 1}, StepStatus.FAILED, 2, 3, 4, 5, {"b": 1}, {"c": 1}),
    call=1,
    call_id="call_x",
    policy="auto",
    for_model="exit code 5",
)


def test_each_field_is_a_column_and_is_shown() -> None:
    """A field that is missing from the table or from the view fails here, and one that only they have."""
    names = {field.name for field in fields(Run)}
    assert names | ROW_ONLY == set(runs.columns.keys())
    assert {field.name for field in fields(StepRecord)} == set(steps.columns.keys())
    assert set(RunView.model_fields) == names - NOT_SHOWN | {"usage", "links"}
    assert all(getattr(WHOLE, field.name) != field.default for field in fields(Run))


CALL = CallRecord(
    run_id="r",
    n=1,
    status=CallStatus.ANSWERED,
    attempt=2,
    model="some",
    dialect="chat",
    request_hash="h",
    reserved_tokens=3,
    reserved_u=4,
    sent_at=5,
    agent="a",
    purpose=CallPurpose.SUMMARY,
    inbox_upto=6,
    tries=7,
    first_at=8,
    ended_at=9,
    finish="stop",
    input_tokens=10,
    cached_tokens=11,
    cache_written_tokens=12,
    output_tokens=13,
    reasoning_tokens=14,
    estimated=True,
    cost_u=15,
    response_id="x",
    error={"code": "c"},
    view={"a": [1]},
    prefix={"system": "s"},
    reply=b'{"text": "ok"}' * 100,
)
MESSAGE = InboxMessage(
    run_id="r", content="c", mode=MessageMode.NEXT, by="ann", created_at=1, idempotency_key="k", k=2
)
APPROVAL = Approval(
    run_id="r",
    step_id="c1-0",
    args_sha256="a",
    rule="auto",
    asked_at=1,
    expires_at=2,
    decision=Decision.DENIED,
    by="ann",
    decided_at=3,
    note="no",
)


@pytest.mark.parametrize(
    ("whole", "table"),
    [(CALL, model_calls), (MESSAGE, inbox), (APPROVAL, approvals)],
    ids=["call", "message", "approval"],
)
def test_each_field_of_an_agents_record_is_a_column(whole: Any, table: Table) -> None:
    """And every kind reads as it was written, set and not set."""
    codec: RowCodec[Any] = RowCodec(type(whole), table)
    assert set(codec.names) == set(table.columns.keys())
    assert all(getattr(whole, field.name) != field.default for field in fields(whole))
    unset = {field.name: None for field in fields(whole) if field.default is None}
    for one in (whole, replace(whole, **unset)):
        assert codec.read(tuple(codec.write(one).values())) == one


def test_a_reply_is_kept_compressed_and_read_whatever_it_is() -> None:
    codec = RowCodec(CallRecord, model_calls)
    row = codec.write(CALL)
    assert len(row["reply"]) < len(CALL.reply or b"") / 10
    assert codec.read(tuple((row | {"reply": b"{}"}).values())).reply == b""


def test_a_row_reads_as_what_was_written() -> None:
    """Every kind of field, set and not set."""
    for run in (WHOLE, replace(WHOLE, error=None, retry_on=None, worker_id=None, exit_code=None)):
        assert RUN_ROW.read(tuple(RUN_ROW.write(run).values())) == run
    for step in (STEP, replace(STEP, result=None, error=None, ended_at=None, for_model=None)):
        assert STEP_ROW.read(tuple(STEP_ROW.write(step).values())) == step


@pytest.mark.parametrize(
    ("column", "raw", "read"),
    [
        ("spec", "{", {}),
        ("spec", None, {}),
        ("error", "[]", {}),
        ("error", None, None),
        ("retry_on", "{}", []),
        ("timeout_s", float("nan"), 315_360_000.0),
        ("truncated", 0, False),
        ("status", "of a later release", "of a later release"),
    ],
)
def test_a_row_that_is_not_as_we_write_them_is_read(column: str, raw: Any, read: Any) -> None:
    """One such row must not hide the others."""
    row = RUN_ROW.write(WHOLE) | {column: raw}
    assert getattr(RUN_ROW.read(tuple(row.values())), column) == read


def test_text_is_cleaned_on_the_way_in() -> None:
    """PostgreSQL takes neither NUL nor half of a surrogate pair."""
    written = RUN_ROW.write(replace(WHOLE, webhook_url="a\0b", type="\ud800"))
    assert (written["webhook_url"], written["type"]) == ("a\ufffdb", "\ufffd")


def test_the_view_has_the_fields_of_its_schema_in_their_order() -> None:
    """Times are text, and the links come last."""
    shown = run_view(WHOLE)
    assert list(shown) == list(RunView.model_fields)
    assert shown["run_at"] == "1970-01-01T00:00:00.000016Z"
    assert shown["created_at"] == "1970-01-01T00:00:00.000001Z"
    assert (shown["labels"], shown["exit_code"]) == (WHOLE.labels, 12)


def test_a_definition_is_what_a_schedule_keeps_and_a_retry_takes_over() -> None:
    """All of it, and nothing of one run's own life."""
    draft = RunDraft(**WHOLE.definition(), run_id="new", user_id="ann", start=True)
    assert draft.definition() == WHOLE.definition()
    assert set(WHOLE.definition()) == set(DEFINITION_FIELDS)
    assert not {"run_id", "status", "run_at", "retry_of", "attempt"} & set(DEFINITION_FIELDS)


def test_the_hash_of_a_body_stays_the_same() -> None:
    """Idempotency keys are kept with it: a field that is added later changes it only where it is sent."""
    first = submit._hash(RunFields(prompt="hello", labels={"a": "b"}), start=True)
    assert first == "043894104e88e7c31d712848c48da24270f18f3953865fc86735d789781be438"
    later = submit._hash(RunFields(prompt="hello", priority="high", retry_on=["timeout"]), start=False)
    assert later == "33d6f58e3746a4c97672a5f510ce9030feeacf645753946b27407e6b41a690ab"
