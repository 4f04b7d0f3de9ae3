"""Tailrun's own telemetry: one structured log for every process, and the metrics.

Owns the shape of a log line (readable text or JSON, to stderr) and the name of each metric.
API and worker import the same objects; each process exposes its own at `/metrics`.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, ClassVar

import structlog
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from structlog.typing import EventDict, Processor, WrappedLogger

from app.config import OwnLogSettings, retired_settings

_QUIET = (
    "alembic",
    "asyncio",
    "botocore",
    "boto3",
    "urllib3",
    "uvicorn.access",
    "websockets",
    "aiosqlite",
    "httpx2",
    "openai",
    "anthropic",
)
"""Libraries that only speak up for warnings."""

_OURS = frozenset({"attempt", "level", "process", "run_id", "timestamp"})


MASK_LOG: ContextVar[Callable[[str], str] | None] = ContextVar("MASK_LOG", default=None)
"""The masker of the log lines of this context: a run's, of all that is done for it."""


_MOST_TEXT, _MOST_TRACE = 2_000, 20_000
_EXCEPTHOOK_ARGUMENTS = 3


def configure_logging(settings: OwnLogSettings, process: str) -> None:
    """Send structlog and the standard library's logging to stderr in one shape.

    `process` (`api`, `worker`, `up` …) is in every line. Colours only on a terminal.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        _Process(process),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _hide,
        _bounded,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderer(settings),
            ],
        ),
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def log_retired_settings() -> None:
    """Name in one warning what the environment still sets and no version since reads."""
    if names := retired_settings():
        get_logger(__name__).warning("settings that are constants now, take them out", names=" ".join(names))


def log_the_unexpected() -> None:
    """Have Python's warnings, and exceptions that are not caught, be lines of the log like all others."""
    warnings.showwarning = _warned
    sys.excepthook = threading.excepthook = sys.unraisablehook = _uncaught


def _warned(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_place: object
) -> None:
    """Log where a library warns, but not what it says: pydantic's warnings quote what users sent."""
    text = str(message) if issubclass(category, DeprecationWarning) else ""
    get_logger(__name__).warning(
        "python warning", category=category.__name__, at=f"{filename}:{lineno}", text=text
    )


def _uncaught(*what: Any) -> None:
    """Log an exception that was not caught, in the shape of every other line."""
    error = what[1] if len(what) == _EXCEPTHOOK_ARGUMENTS else what[0].exc_value
    get_logger(__name__).critical("uncaught exception", exc_info=error or True)


def _bounded(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Shorten long texts: a traceback in its middle, everything else at its end."""
    for name, value in event.items():
        if not isinstance(value, str):
            continue
        if name == "exception" and len(value) > _MOST_TRACE:
            event[name] = f"{value[: _MOST_TRACE // 2]}\n…\n{value[-_MOST_TRACE // 2 :]}"
        elif name != "exception" and len(value) > _MOST_TEXT:
            event[name] = value[:_MOST_TEXT] + "…"
    return event


class _Process:
    """Puts the name of the process into every line."""

    def __init__(self, process: str) -> None:
        self.process = process

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = self.process
        return event


def _renderer(settings: OwnLogSettings) -> list[Processor]:
    if settings.format == "json":
        return [structlog.processors.JSONRenderer(default=str)]
    return [_TextLine(colours=sys.stderr.isatty())]


def _hide(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask every text of a line, a traceback too; not what Tailrun itself calls the line's parts."""
    mask = MASK_LOG.get()
    if mask is None:
        return event
    return {
        key: mask(text) if type(text) is str and key not in _OURS else text for key, text in event.items()
    }


class _TextLine:
    """One readable line: `22:31:07.864 info     api     run created  run_id=… user_id=…`.

    Only a traceback takes further lines, which are indented; line ends inside of values are escaped.
    So text of a client cannot pass for a line of ours.
    """

    _colours: ClassVar[dict[str, str]] = {"warning": "33", "error": "31", "critical": "31"}

    def __init__(self, *, colours: bool) -> None:
        self.colours = colours

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> str:
        trace = event.pop("exception", None) or event.pop("stack", None)
        level = str(event.pop("level", "info"))
        when = str(event.pop("timestamp", ""))[11:23]
        process, what = event.pop("process", ""), _flat(event.pop("event", ""))
        fields = " ".join(f"{self._dim(key + '=')}{_value(event[key])}" for key in event)
        line = f"{self._dim(when)} {self._paint(level, f'{level:<8}')} {process:<8} {what}"
        return (
            line
            + (f"  {fields}" if fields else "")
            + "".join(f"\n    {_flat(row)}" for row in (trace or "").split("\n") if row)
        )

    def _dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self.colours else text

    def _paint(self, level: str, text: str) -> str:
        colour = self._colours.get(level)
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colours and colour else text


def _flat(value: object) -> str:
    text = str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def _value(value: object) -> str:
    text = str(value)
    return text if text and text.isprintable() and " " not in text else repr(text)


def get_logger(name: str) -> Any:
    """Return the logger of a module; fields are keyword arguments of each call."""
    return structlog.stdlib.get_logger(name)


RUNS = Gauge("tailrun_runs", "Runs in the database, by state.", ["state"])
QUEUE_DEPTH = Gauge(
    "tailrun_queue_depth", "Entries in Redis, by place: pending, delayed, processing, dead.", ["place"]
)
QUEUE_OLDEST_AGE = Gauge("tailrun_queue_oldest_age_seconds", "Age of the oldest run that is queued.")
WORKERS = Gauge("tailrun_workers", "Workers whose lease is alive.")
WATCHERS = Gauge("tailrun_watchers", "Open streams (SSE and WebSocket) of this process.")
STREAM_LIMIT = Gauge("tailrun_watchers_limit", "Most open streams of this process (STREAM_LIMIT).")
READY = Gauge("tailrun_ready", "1 if what this API needs answers, by what was asked.", ["check"])
STORAGE_ERRORS = Counter(
    "tailrun_storage_errors", "Calls that database or redis did not answer, or refused.", ["store"]
)
PERIODIC_ERRORS = Counter(
    "tailrun_periodic_errors", "Rounds of periodic work that an unexpected error ended, by work.", ["work"]
)
HTTP_SECONDS = Histogram(
    "tailrun_http_request_seconds",
    "Time to the end of an answer; to its first byte for a stream.",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
LOG_LINES = Counter("tailrun_log_lines", "Lines that runs printed, by pipe.", ["stream"])
LOG_BYTES = Counter("tailrun_log_bytes", "Bytes (UTF-8) of the lines that runs printed.")
LOG_GAPS = Counter("tailrun_log_gaps", "Gaps in runs' logs: events that are lost.")
SLOTS_BUSY = Gauge("tailrun_worker_slots_busy", "Runs that this worker has in flight, agents not counted.")
AGENTS = Gauge("tailrun_agents", "Agents that this worker has in flight.")
ATTEMPTS = Counter("tailrun_attempts", "Attempts that ended, by the run's status then.", ["status"])
FAILURES = Counter("tailrun_failures", "Attempts that failed, by error code.", ["code"])
RETRIES = Counter("tailrun_retries", "Attempts given back for another try after a failure.")
REDELIVERIES = Counter("tailrun_redeliveries", "Runs taken over from a worker that died.")
LACKS = Gauge("tailrun_worker_lacks", "1 while this worker claims nothing for lack of it.", ["resource"])
RECONCILED_AT = Gauge(
    "tailrun_reconciled_timestamp_seconds", "When this worker last compared database and Redis; 0: never."
)
SCHEDULED = Counter("tailrun_scheduled_runs", "Runs that this worker made for schedules.")
WEBHOOKS = Counter(
    "tailrun_webhooks", "Tries to deliver a webhook, by outcome: delivered, retried, gave_up.", ["outcome"]
)
APPROVALS = Counter(
    "tailrun_approvals", "Steps of agents that were decided: approved, denied, expired.", ["decision"]
)
MODEL_CALLS = Counter(
    "tailrun_model_calls",
    "Calls of a model, by outcome: answered, retried, failed, cancelled, lost.",
    ["model", "outcome"],
)
MODEL_TOKENS = Counter("tailrun_model_tokens", "Tokens of a model, in and out.", ["model", "kind"])
MODEL_COST = Counter("tailrun_model_cost_usd", "US dollars of a model whose price is known.", ["model"])
MODEL_FIRST_SECONDS = Histogram(
    "tailrun_model_first_token_seconds",
    "Time from a call of a model to its first token.",
    ["model"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180),
)
DEAD_LETTERS = Counter("tailrun_dead_letters", "Entries put into jobs:dead, by reason.", ["reason"])
RUN_WAIT_SECONDS = Histogram(
    "tailrun_run_wait_seconds",
    "Time from queued to claimed.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60, 300),
)
RUN_SECONDS = Histogram(
    "tailrun_run_seconds",
    "Time that an attempt ran.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600),
)
LOG_COMMIT_SECONDS = Histogram(
    "tailrun_log_commit_seconds",
    "Time of one database transaction of the log writer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
WORKSPACE_BYTES = Gauge(
    "tailrun_workspace_bytes",
    "Bytes of users' files; the largest users by name, the others together.",
    ["user"],
)
LOG_UPKEEP = Counter(
    "tailrun_log_upkeep", "Logs of ended runs that the janitor packed, archived or expired.", ["work"]
)
TOOL_STAGE_SECONDS = Histogram(
    "tailrun_tool_stage_seconds",
    "What a tool's pod took to reach each stage from the one before.",
    ["stage"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

OF_API = (RUNS, QUEUE_DEPTH, QUEUE_OLDEST_AGE, WORKERS, WATCHERS, STREAM_LIMIT, READY, HTTP_SECONDS)
OF_WORKER = (
    *(
        SLOTS_BUSY,
        AGENTS,
        ATTEMPTS,
        FAILURES,
        RETRIES,
        LACKS,
        RECONCILED_AT,
        SCHEDULED,
        WEBHOOKS,
        RUN_WAIT_SECONDS,
    ),
    *(RUN_SECONDS, LOG_COMMIT_SECONDS, WORKSPACE_BYTES, LOG_UPKEEP, TOOL_STAGE_SECONDS),
    *(MODEL_CALLS, MODEL_TOKENS, MODEL_COST, MODEL_FIRST_SECONDS),
)


def leave_out(metrics: Sequence[MetricWrapperBase]) -> None:
    """Export nothing of these from this process: a metric that is not set would be 0.

    An alert on a series that is missing never fires while other processes export it as 0.
    """
    for metric in metrics:
        with suppress(KeyError):  # left out before: a process that serves twice
            REGISTRY.unregister(metric)
