"""`LOG_MAX_BYTES` through real processes: what is kept of runs that print without end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.stack import Stack

LIMIT, ROW, MARKER = 100_000, 100, 500
LOUD = {
    "empty lines": (r"print('first' + '\n' * 50_000 + 'last')", 50_001),
    "four bytes a character": (r"print('first\n' + '\U0001f600\n' * 20_000 + 'last')", 20_002),
    "one burst, at the end": (r"print('first\n' + 'x\n' * 1_800 + 'last')", 1_802),
}


@pytest.fixture
def stack(tmp_path: Path, system_url: str) -> Iterator[Stack]:
    stack = Stack(tmp_path, system_url, LOG_MAX_BYTES=str(LIMIT), RETRY_BASE_S="0.01", RETRY_MAX_S="0.01")
    yield stack
    stack.close()


def python(source: str) -> dict[str, Any]:
    return {"tool": "code", "args": {"language": "python", "source": source}}


def check(stack: Stack, run_id: str, lines: int) -> None:
    """Both ends are there, one marker stands for the middle, and the rows keep to the limit."""
    run, events = stack.run(run_id), stack.events(run_id)
    logs = [event for event in events if event["type"] == "log"]
    [mark] = [event for event in events if event["type"] == "truncated"]
    printed = [event["content"] for event in logs if event["stream"] != "system"]
    assert (printed[0], printed[-1], events[-1]["type"]) == ("first", "last", "end")
    covered = {*range(mark["from"], mark["to"] + 1), *(event["seq"] for event in events)}
    assert covered == set(range(1, run["last_seq"] + 1))
    size = sum(len(event["content"].encode()) for event in logs)
    assert (mark["lines"] + len(logs), mark["bytes"] + size) == (run["log_lines"], run["log_size"])
    assert run["truncated"]
    assert run["log_lines"] >= lines
    assert LIMIT // 2 <= size + ROW * len(events) <= LIMIT + MARKER


@pytest.mark.parametrize(("source", "lines"), LOUD.values(), ids=LOUD)
def test_a_program_without_end_is_kept_at_both_ends(stack: Stack, source: str, lines: int) -> None:
    run_id = stack.submit(python(source), start=False)
    watcher = stack.watch(run_id)
    assert stack.http.post(f"/v1/runs/{run_id}/start").is_success
    assert stack.wait_end(run_id, 120)["status"] == "succeeded"
    check(stack, run_id, lines)
    assert watcher.finish(120)[-1]["type"] == "end"
    after = 0
    for event in watcher.events:
        assert event.get("from", event["seq"]) <= after + 1, "what was cut is announced, or was seen"
        after = event["seq"]


def test_tries_of_a_run_share_one_limit(stack: Stack) -> None:
    run_id = stack.submit(
        python("print('first'); print('\\n' * 4_999); print('last'); raise SystemExit(1)"),
        retry_on=["exit_nonzero"],
        max_attempts=6,
    )
    run = stack.wait_end(run_id, 120)
    assert (run["status"], run["attempt"]) == ("failed", 6)
    check(stack, run_id, 30_000)
