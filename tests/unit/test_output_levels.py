"""The ways in which programs say how severe a line is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.execution.levels import level_of
from app.models import Level

ERRORS = [
    "ERROR: x",
    "[ERROR] x",
    "error: could not compile",
    "error[E0308]: mismatched types",
    "fatal: not a git repository",
    "CRITICAL x",
    "ERROR:root:x",
    '{"ts": 1, "level":"error", "msg": "x"}',
    '{"message":"x","severity":"CRITICAL"}',
    '{"level":50,"msg":"pino"}',
    "2026-11-20 12:00:00,123 ERROR x",
    "2026-11-20 12:00:00,123 - app.main - ERROR - x",
    "2026-11-20T12:00:00.123Z ERROR x",
    "2026/11/20 12:00:00 [error] 12#0: x",
    "[2026-11-20 12:00:00,123: ERROR/MainProcess] x",
    "2026-11-20 12:00:00.123 | ERROR    | app:main:1 - x",
    "12:00:00 ERROR x",
    "E1120 12:00:00.123456       1 main.go:1] x",
    "E: Unable to locate package x",
    "time=2026-11-20T12:00:00Z level=error msg=x",
    "Traceback (most recent call last):",
    "ValueError: x",
    "\x1b[31mERROR\x1b[0m x",
    "panic: runtime error",
]
WARNINGS = [
    "[WARN] x",
    "WARNING:root:x",
    "warning: unused variable",
    "level=warn msg=x",
    '{"level":"warning"}',
    "W: Some index files failed",
    "2026-11-20 12:00:00,123 [WARNING] x",
    "[warn] x",
]
DEBUGS = ["DEBUG: x", "[TRACE] x", "level=debug", '{"severity":"DEBUG"}', "2026-11-20 12:00:00 DEBUG x"]
PLAIN = [
    "",
    "x",
    "INFO: x",
    "level=info",
    "no error here",
    "Error handling is described below",
    "errors: 0",
    "2026-11-20 12:00:00 finished without an error at all",
    "2026-11-20 results ERRORS none",
    "ERRORS 0",
    "Warnings are errors",
    '{"result": "error"}',
    "Exit 3",
    "[1/3] Fetching",
    "ENABLED",
]


@pytest.mark.parametrize("text", ERRORS)
def test_errors(text: str) -> None:
    assert level_of(text) is Level.ERROR


@pytest.mark.parametrize("text", WARNINGS)
def test_warnings(text: str) -> None:
    assert level_of(text) is Level.WARNING


@pytest.mark.parametrize("text", DEBUGS)
def test_debugs(text: str) -> None:
    assert level_of(text) is Level.DEBUG


@pytest.mark.parametrize("text", PLAIN)
def test_everything_else_is_info(text: str) -> None:
    assert level_of(text) is Level.INFO


@given(st.text())
def test_any_text_has_a_level(text: str) -> None:
    assert level_of(text) in Level


@pytest.mark.parametrize(
    "text", ["k=v " * 100_000, "[" * 100_000, "{" + '"level"' * 100_000, "\x1b[0m" * 100_000]
)
@pytest.mark.timeout(60)
def test_no_line_takes_long(text: str) -> None:
    for _ in range(100):
        level_of(text)
