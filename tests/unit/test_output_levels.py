"""The ways in which programs say how severe a line is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrun.process.levels import level_of
from tailrun.process.lines import Level

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
    'Exception in thread "main" java.lang.IllegalStateException: x',
    "java.lang.NullPointerException",
    "java.io.IOException: x",
    "requests.exceptions.HTTPError: 404",
    "TypeError [ERR_INVALID_ARG_TYPE]: x",
    "thread 'main' panicked at src/main.rs:2:5:",
    "thread 'main' (4711) panicked at src/main.rs:2:5:",
    "npm ERR! code E404",
    "npm error code E404",
    "main.c:3:5: error: expected ';' before '}'",
    "src/Foo.java:3: error: cannot find symbol",
    "src/a.ts(3,5): error TS2304: Cannot find name 'x'.",
    "src/a.ts:3:5 - error TS2304: Cannot find name 'x'.",
    "a.h:1:10: fatal error: x.h: No such file or directory",
    "/usr/bin/ld: error: undefined symbol: x",
    "prog.py: error: the following arguments are required: x",
    "fatal error: all goroutines are asleep - deadlock!",
    "Segmentation fault (core dumped)",
    "Aborted (core dumped)",
    "FATAL could not connect",
    "FATAL: role does not exist",
    "ALERT: x",
    "SEVERE  x",
    "error: no such file",
    "ERROR: 0 of 3 passed",
    '{"http":{"level":"debug"},"level":"error","msg":"x"}',
    '{"msg":"a } \\" {","level":"error"}',
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
    "npm warn deprecated x",
    "main.c:3:5: warning: unused variable",
    "src/a.ts(3,5): warning TS1: x",
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
    '{"http":{"level":"error"},"level":"info","msg":"x"}',
    '{"items":[{"level":"error"}]}',
    '{"msg":"\\"level\\": \\"error\\""}',
    "error: none",
    "Error: 0",
    "ERROR: no.",
    "check: error: none",
    "ALERT manager is up",
    "FATAL FURY is a game",
    "PANIC room",
    "the error: of my ways",
    "at 10:30 error: is a word",
    "no Exception in thread",
    "warning signs were seen",
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
