"""The examples of the streaming guide, with nothing changed but the line that imports.

`# guide` marks what is quoted. The guide prints a Python dictionary into its events; here the text of
`entry.to_dict()` is JSON, so that a browser can parse it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from tailrun import (
    LogEntry,
    OutputCapture,
    ResourceLimitException,
    ResourceManager,
    Run,
    RunRegistry,
    RunStatus,
    execute_long_running_task,
)


@pytest.fixture
def output_capture(tmp_path: Path) -> OutputCapture:
    return OutputCapture(log_dir=tmp_path / "logs", max_buffer_size=10000)  # guide


@pytest.fixture
def script_path(tmp_path: Path) -> Path:
    path = tmp_path / "test_script.py"
    path.write_text("print('Hello, World!')")
    return path


async def test_one_script_of_one_line(output_capture: OutputCapture, script_path: Path) -> None:
    # guide
    exit_code = await execute_long_running_task(
        run_id="test", script_path=script_path, output_capture=output_capture
    )
    assert exit_code == 0
    logs = output_capture.get_logs("test")
    assert len(logs) == 1
    # and where the guide awaits
    assert await output_capture.get_logs("test") == logs
    await output_capture.cleanup_run("test")


async def test_lines_are_appended_and_read(output_capture: OutputCapture) -> None:
    run_id, line = "r1", "WARNING: low"
    await output_capture.append_line(run_id, line, stream="stdout")  # guide
    await output_capture.append_line(run_id, "Traceback", stream="stderr")  # guide
    output_capture.end_run(run_id)
    said = list[tuple[Any, ...]]()
    # guide
    async for entry in output_capture.subscribe_sse(run_id):
        said.append((entry.timestamp, entry.message, entry.to_dict()))
    assert [message for _, message, _ in said] == [line, "Traceback"]
    assert all(isinstance(timestamp, datetime) for timestamp, _, _ in said)
    assert said[0][2]["stream"] == "stdout"
    assert said[0][2]["level"] == "warning"
    assert said[1][2]["stream"] == "stderr"


def test_lines_are_appended_without_an_event_loop(output_capture: OutputCapture) -> None:
    output_capture.append_line("r1", "one", stream="stdout")
    assert [entry.message for entry in output_capture.get_logs("r1")] == ["one"]
    output_capture.cleanup_run("r1")
    assert ResourceManager().check_resources()
    registry = RunRegistry()
    run = registry.create_run("module", {"x": 1})
    assert registry.update_run(run.run_id, RunStatus.COMPLETED, exit_code=0) is run


async def test_a_task_is_watched_as_soon_as_it_is_made(
    output_capture: OutputCapture, script_path: Path
) -> None:
    """The guide makes a task and reads its lines at once, before the task has run a first step."""
    run_id = "r1"
    # guide
    task = asyncio.create_task(execute_long_running_task(run_id, script_path, output_capture))
    messages = [entry.message async for entry in output_capture.subscribe_sse(run_id)]
    assert await task == 0
    assert messages == ["Hello, World!"]
    with pytest.raises(LookupError):
        await anext(output_capture.subscribe_sse("nobody"))


async def test_runs_are_registered_and_their_attributes_set(
    output_capture: OutputCapture, script_path: Path
) -> None:
    run_registry, resource_manager = RunRegistry(), ResourceManager()
    module_id, parameters = "import", {"file": "a.xlsx"}
    # guide
    if not await resource_manager.check_resources():
        raise ResourceLimitException("Insufficient resources")
    run = Run(module_id=module_id, parameters=parameters, status=RunStatus.RUNNING)
    await run_registry.create_run(run)
    try:
        exit_code = await execute_long_running_task(run.run_id, script_path, output_capture)
        run.status = RunStatus.COMPLETED if exit_code == 0 else RunStatus.FAILED
        run.exit_code = exit_code
        await run_registry.update_run(run)
    finally:
        await output_capture.cleanup_run(run.run_id)
    known = run_registry.get_run(run.run_id)
    assert (known.status, known.exit_code, known.parameters) == ("completed", 0, parameters)
    run.error_message = "set later"
    await run_registry.update_run(run.run_id, status=RunStatus.FAILED, error_message="told by its id")
    assert (run.status, run.exit_code, run.error_message) == (RunStatus.FAILED, 0, "told by its id")
    with pytest.raises(ValueError, match="already"):
        await run_registry.create_run(run)
    with pytest.raises(LookupError):
        await run_registry.update_run(Run(module_id=module_id))


async def test_the_endpoint_streams_json(output_capture: OutputCapture) -> None:
    app = FastAPI()

    # guide
    @app.get("/runs/{run_id}/logs/stream")
    async def stream_logs(run_id: str) -> StreamingResponse:
        async def event_generator() -> AsyncIterator[str]:
            async for entry in output_capture.subscribe_sse(run_id):
                yield f"data: {entry.to_dict()}\n\n"

        return StreamingResponse(event_generator(), media_type="text/event-stream")

    await output_capture.append_line("r1", 'it\'s a "quote" ü')
    output_capture.end_run("r1")
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/runs/r1/logs/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    (frame,) = answer.text.strip().split("\n\n")
    assert json.loads(frame.removeprefix("data: ")) == output_capture.get_logs("r1")[0].to_dict()


async def test_a_sign_of_life_is_an_entry_that_no_log_holds(tmp_path: Path) -> None:
    capture = OutputCapture(log_dir=tmp_path, keepalive_s=0.01)
    capture.open_run("r1")
    stream = capture.subscribe_sse("r1")
    entry: LogEntry = await anext(stream)
    assert (entry.message, entry.stream, entry.seq) == ("# keepalive", "system", 0)
    await stream.aclose()
    assert capture.get_logs("r1") == []
    assert capture._run("r1").followers == 0
    capture.close()
