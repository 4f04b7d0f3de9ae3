"""An attempt whose log cannot be written ends, with its program; the run is left to be taken over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NoReturn

import pytest
from support.run_rows import NOW, new_run
from support.servers import RedisServer

from app.config import Settings
from app.core.models import RunKind, RunStatus
from app.db.migrate import migrate
from app.worker.attempts import Attempt
from app.worker.job_processor import JobProcessor
from app.worker.wiring import Wiring


@pytest.mark.parametrize("store", ["runs.commit", "bench.publisher.append"])
async def test_a_log_that_cannot_be_written_ends_the_attempt_and_its_program(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    settings = Settings(
        data_dir=tmp_path,
        redis_url=redis_server.url,  # pyright: ignore[reportArgumentType]
        database_url=f"sqlite:///{tmp_path / 'tailrun.db'}",  # pyright: ignore[reportArgumentType]
    )
    migrate(settings.data.effective_database_url)
    parts = Wiring(settings, "w1")
    await parts.executor.start()
    spec = {"steps": [{"id": "s1", "tool": "shell", "args": {"command": "echo begun; sleep 600"}}]}
    made = await parts.runs.create(new_run(kind=RunKind.STEPS, spec=spec, timeout_s=600.0), NOW)
    [run] = await parts.runs.claim([made.run.run_id], "w1", NOW)

    async def broken(*_: object, **__: object) -> NoReturn:
        raise TypeError("a mistake")

    place, _, name = store.rpartition(".")
    found = parts.runs if place == "runs" else parts.bench.publisher
    monkeypatch.setattr(found, name, broken)
    async with asyncio.timeout(60):
        await JobProcessor(parts.bench, Attempt(run, b"entry")).process()
    after = await parts.runs.get(run.run_id)
    assert after is not None
    assert (after.status, after.attempt, after.worker_id) == (RunStatus.RUNNING, 1, "w1")
    await parts.close()
