"""Tailrun's own log: one line per event, in text or JSON, that no input can forge."""

from __future__ import annotations

import gc
import io
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import structlog

from app.config import Settings
from app.core import telemetry
from app.core.telemetry import (
    MASK_LOG,
    configure_logging,
    get_logger,
    log_retired_settings,
    log_the_unexpected,
)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logged(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **settings: Any) -> io.StringIO:
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging(Settings(**settings).own_log, "api")
    return stream


def test_a_text_line_tells_time_level_process_what_and_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short enough to read in `kubectl logs -f`; no colours where nobody sees them."""
    out = logged(monkeypatch, io.StringIO())
    get_logger("x").warning("run created", run_id="r1", note="a b")
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} warning  api      run created  run_id=r1 note='a b'\n", out.getvalue()
    )


def test_a_setting_of_an_earlier_version_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for all of them; what is empty counts as unset."""
    monkeypatch.setenv("LOG_LINGER_S", "1")
    monkeypatch.setenv("stream_linger_s", "0")
    monkeypatch.setenv("PROJECTS_TIMEOUT_S", "")
    out = logged(monkeypatch, io.StringIO())
    log_retired_settings()
    [line] = out.getvalue().splitlines()
    assert "warning" in line
    assert "names='LOG_LINGER_S STREAM_LINGER_S'" in line


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors stand out."""
    out = logged(monkeypatch, Terminal())
    get_logger("x").error("broken")
    assert "\x1b[31merror" in out.getvalue()


def test_input_cannot_pass_for_a_line_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Line ends and escape sequences are shown, not obeyed."""
    out = logged(monkeypatch, io.StringIO())
    get_logger("x").info("GET /a\nfake", path="b\r\nfake \x1b[2J")
    assert len(out.getvalue().splitlines()) == 1
    assert "\x1b" not in out.getvalue()


def test_json_lines_have_the_same_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object a line, for machines; a traceback is one of its fields."""
    out = logged(monkeypatch, io.StringIO(), log_format="json")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        get_logger("x").exception("broken", run_id="r1")
    line = orjson.loads(out.getvalue())
    assert (line["event"], line["level"], line["process"], line["run_id"]) == ("broken", "error", "api", "r1")
    assert "ZeroDivisionError" in line["exception"]


def test_libraries_log_in_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """What uvicorn or alembic say through the standard library looks like ours."""
    out = logged(monkeypatch, io.StringIO(), log_format="json")
    logging.getLogger("some.library").warning("%s is odd", "this")
    assert orjson.loads(out.getvalue())["event"] == "this is odd"


def test_the_level_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below it nothing is written."""
    out = logged(monkeypatch, io.StringIO(), log_level="error")
    get_logger("x").warning("quiet")
    assert out.getvalue() == ""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_is_done_for_a_run_is_logged_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, log_format: str
) -> None:
    """In fields, in the text and in a traceback; from libraries too."""
    out = logged(monkeypatch, io.StringIO(), log_format=log_format)
    token = MASK_LOG.set(lambda text: text.replace("hunter22", "***"))
    try:
        get_logger("x").warning("failed at hunter22", error="no hunter22", run_id="r1", count=2)
        logging.getLogger("library").warning("with %s", "hunter22")
        get_logger("x").error("broke", exc_info=ValueError("hunter22 in a traceback"))
    finally:
        MASK_LOG.reset(token)
    assert "hunter22" not in out.getvalue()
    assert "*** in a traceback" in out.getvalue()
    assert "r1" in out.getvalue()


def test_a_traceback_cannot_pass_for_lines_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an exception says may be a user's words: its lines are indented, escaped and bounded."""
    out = logged(monkeypatch, io.StringIO())
    said = "12:00:00.000 error    api      fake\n" * 3000 + "\x1b[2J" + "x" * 99_999
    get_logger("x").error("broken", exc_info=ValueError(said))
    first, *others = out.getvalue().splitlines()
    assert first.endswith("broken")
    assert all(line.startswith("    ") for line in others)
    assert "\x1b" not in out.getvalue()
    assert len(out.getvalue()) < 30_000


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_long_text_is_shortened(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Whoever may send megabytes does not write them into the log."""
    out = logged(monkeypatch, io.StringIO(), log_format=form)
    get_logger("x").info("a" * 1_000_000, path="b" * 1_000_000)
    logging.getLogger("some.library").warning("c" * 1_000_000)
    assert len(out.getvalue()) < 10_000


def test_warnings_and_what_nobody_catches_have_the_shape_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning is named, not quoted; an exception of a thread or a finaliser is logged."""
    out = logged(monkeypatch, io.StringIO(), log_format="json")
    log_the_unexpected()

    class Broken:
        def __del__(self) -> None:
            raise ValueError("in a finaliser")

    def fail() -> None:
        raise KeyError("in a thread")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = telemetry._warned
        warnings.warn("input_value='sk-secret'", UserWarning, stacklevel=1)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    del_me = Broken()
    del del_me
    gc.collect()
    lines = [orjson.loads(line) for line in out.getvalue().splitlines()]
    assert lines[0]["category"] == "UserWarning"
    assert "sk-secret" not in out.getvalue()
    assert "in a thread" in out.getvalue()
    assert "in a finaliser" in out.getvalue()
