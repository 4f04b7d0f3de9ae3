"""What a run is made of, as it comes in over HTTP: strict, nothing unknown."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SkipValidation

from app.core.clock import parse_ts
from app.core.errors import Unprocessable
from app.core.names import check_env
from app.plan.explain import quote
from app.plan.result_schema import ResultSchema
from app.plan.steps import IMAGE, TOOLS, StepIn
from tailrun.process.errors import ErrorCode

MAX_PROMPT = 100_000


MAX_ARGV_BYTES = 100_000


MAX_ENV_BYTES = 32_000


MAX_INSTRUCTIONS = 32_000


MAX_SCHEMA_BYTES = 16_000


MAX_TRANSCRIPT = 1_000_000
"""Characters of a transcript that comes in."""


RETRY_CODES = [code.value for code in ErrorCode if code not in {ErrorCode.CANCELLED, ErrorCode.WORKER_LOST}]
"""What `retry_on` may hold: a cancel is final, and a lost worker has a limit of its own."""


RUN_EXAMPLE = "0b5c8a52-5c0e-4a55-9d0c-7f4f3f6e2a11"


_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _prompt(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _argv(value: list[str]) -> list[str]:
    if not value or not value[0]:
        raise ValueError("must begin with the name of a program")
    if sum(len(word.encode()) for word in value) > MAX_ARGV_BYTES:
        raise ValueError(f"must be at most {MAX_ARGV_BYTES} bytes long in all")
    return value


def _labels(value: dict[str, str]) -> dict[str, str]:
    for key, text in value.items():
        if not 1 <= len(key) <= 63 or len(text) > 255 or "\0" in key + text:  # noqa: PLR2004
            raise ValueError("must have keys of 1 to 63 and values of at most 255 characters, without NUL")
    return value


def _env(value: dict[str, str]) -> dict[str, str]:
    try:
        check_env(value)
    except Unprocessable as error:
        raise ValueError(error.message.removeprefix("env: ")) from error
    if sum(len(name) + len(text.encode()) for name, text in value.items()) > MAX_ENV_BYTES:
        raise ValueError(f"must be at most {MAX_ENV_BYTES} bytes long in all")
    return value


def _tools(value: list[str]) -> list[str]:
    for name in value:
        if name not in TOOLS:
            raise ValueError(f"must hold names of tools ({', '.join(TOOLS)}), not {quote(name)}")
    return list(dict.fromkeys(value))


def _result_schema(value: dict[str, Any]) -> dict[str, Any]:
    if value.get("type") != "object":
        raise ValueError('must be the schema of an object: "type": "object"')
    if len(orjson.dumps(value)) > MAX_SCHEMA_BYTES:
        raise ValueError(f"must be at most {MAX_SCHEMA_BYTES} bytes long")
    ResultSchema(value)
    return value


def _retry_on(value: list[str]) -> list[str]:
    for code in value:
        if code not in RETRY_CODES:
            raise ValueError(f"must hold codes of {', '.join(RETRY_CODES)}, not {quote(code)}")
    return sorted(set(value))


def _moment(value: str) -> str:
    if _RFC_3339.fullmatch(value):
        with suppress(ValueError, OverflowError):
            parse_ts(value.upper())
            return value
    raise ValueError(f"must be a time with a zone, such as 2026-11-20T12:00:00Z, not {quote(value)}")


class Body(BaseModel):
    """A body that comes in: strict, nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True)


Text = Annotated[str, AfterValidator(_no_nul)]


Name = Annotated[Text, Field(min_length=1, max_length=200)]


class BudgetIn(Body):
    """What an agent may spend at most: 0 is nothing, left out is as much as the deployment allows."""

    usd: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="US dollars, of calls whose price is known; at most `AGENT_BUDGET_USD`.",
    )
    tokens: int | None = Field(
        default=None, ge=0, description="Tokens, in and out; at most `AGENT_BUDGET_TOKENS`."
    )
    calls: int | None = Field(
        default=None, ge=0, description="Calls of the model; at most `AGENT_MAX_CALLS`."
    )
    tool_calls: int | None = Field(
        default=None, ge=0, description="Calls of tools; at most `AGENT_MAX_TOOL_CALLS`."
    )


class AgentIn(Body):
    """How a language model carries out the prompt. A tool's program gets `image` and `network`."""

    model: Name | None = Field(default=None, description="One of GET /v1/models; left out: the default one.")
    instructions: Annotated[Text, Field(max_length=MAX_INSTRUCTIONS)] | None = Field(
        default=None, description="What the model is told beside the prompt, with more weight."
    )
    tools: Annotated[list[str], Field(max_length=50), AfterValidator(_tools)] | None = Field(
        default=None,
        description="The tools that it may call; left out: all. None: it can only answer.",
        examples=[["file_read", "file_list"]],
    )
    approve: Annotated[list[str], Field(max_length=50), AfterValidator(_tools)] | None = Field(
        default=None,
        description="Tools whose calls need an approval; left out: as the deployment says.",
        examples=[["shell", "code"]],
    )
    on_expiry: Literal["deny", "fail"] = Field(
        default="deny",
        description="A step that was not approved in time: `deny`, the agent continues without it, or "
        "`fail`, the run fails (`approval_expired`).",
    )
    budget: BudgetIn | None = None
    result_schema: Annotated[dict[str, Any], AfterValidator(_result_schema)] | None = Field(
        default=None, description="JSON Schema of an object: what the result has to be like."
    )
    image: str | None = Field(
        default=None, min_length=1, max_length=500, pattern=IMAGE, description="As of a step."
    )
    network: Literal["none", "internet"] | None = Field(default=None, description="As of a step.")


class RunFields(Body):
    """What a run is made of: exactly one of `prompt`, `steps`, `type`, `argv`, `replay_of`, `transcript`."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_prompt)] | None = Field(
        default=None,
        description="What to do, in words; or a fenced block of steps in YAML or JSON.",
    )
    planner: Literal["smoke", "agent"] | None = Field(
        default=None,
        description="With a prompt: `agent` has a language model carry it out, which is what happens to a "
        "prompt without steps anyway; without a model it is refused (`no_model`). `smoke` runs a small plan "
        "that shows files, shell and logs at work.",
    )
    agent: AgentIn | None = Field(
        default=None, description="With a prompt that a language model carries out."
    )
    continue_of: str | None = Field(
        default=None,
        description="With a prompt: an ended run of yours that a model carried out. The new one follows "
        "it, and begins with its files.",
    )
    replay_of: str | None = Field(
        default=None,
        description="An ended run of yours that a model carried out: once more, with the replies that are "
        "recorded of it. With a `prompt`, that one is used instead of its own.",
    )
    transcript: Annotated[Text, Field(max_length=MAX_TRANSCRIPT)] | None = Field(
        default=None,
        description="The same with what `GET /v1/runs/{run_id}/transcript` gave, of any server.",
    )
    strict: bool | None = Field(
        default=None,
        description="Of a replay: whether it ends (`replay_diverged`) with the first request that is not the "
        "recorded one; true if left out.",
    )
    tools: Literal["real", "recorded"] | None = Field(
        default=None,
        description="Of a replay: `real` runs the tools, `recorded` runs none and gives what they gave.",
    )
    steps: Annotated[list[StepIn], SkipValidation] | None = Field(
        default=None, description="What to do, step by step."
    )
    argv: Annotated[list[Text], Field(min_length=1, max_length=1000), AfterValidator(_argv)] | None = Field(
        default=None, description="One program and its arguments, run in the workspace without a shell."
    )
    type: Name | None = Field(default=None, description="A task type; GET /v1/task-types lists them.")
    command: Name | None = Field(default=None, description="With `type`: which command of the task type.")
    params: dict[str, Any] | None = Field(default=None, description="With `type`: the task's parameters.")
    project: Name | None = Field(
        default=None, description="With `type`: whose configuration the program gets; `default` if left out."
    )
    labels: Annotated[dict[str, str], Field(max_length=16), AfterValidator(_labels)] = Field(
        default_factory=dict[str, str],
        description="At most 16 names and values of your own, 63 and 255 characters long.",
    )
    env: Annotated[dict[str, str], Field(max_length=64), AfterValidator(_env)] = Field(
        default_factory=dict[str, str],
        description="Environment of the run's programs; never shown again.",
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that one attempt may take; at most, and if left out, `JOB_TIMEOUT_S`.",
    )
    max_attempts: int | None = Field(
        default=None, ge=1, le=20, description="1 + retries after a failure; left out: `JOB_MAX_ATTEMPTS`."
    )
    retry_on: Annotated[list[str], Field(max_length=50), AfterValidator(_retry_on)] | None = Field(
        default=None,
        description="Error codes after which the run is tried again, no others; left out: the usual ones.",
        examples=[["exit_nonzero", "timeout"]],
    )
    run_at: Annotated[str, Field(max_length=40), AfterValidator(_moment)] | None = Field(
        default=None,
        description="Not before this time (RFC 3339), at most a year ahead; one that is past is at once.",
        examples=["2026-11-20T12:00:00Z"],
    )
    priority: Literal["high", "normal"] = Field(
        default="normal", description="`high` goes to the front of the queue: it is taken next."
    )
    webhook_url: Text | None = Field(
        default=None,
        description="Where to POST a signed message once the run has ended; needs `WEBHOOK_SECRET`.",
        examples=["https://example.com/hooks/tailrun"],
    )
    workspace_from: str | None = Field(
        default=None, description="A run of yours whose files the new run starts with."
    )
