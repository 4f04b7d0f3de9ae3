"""Agents in real worker processes, over a real Redis and database, with a model's server that is scripted."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from app.core.agent_records import Approval, CallRecord, Decision, InboxMessage, MessageMode
from app.core.clock import now_us
from app.core.events import Event
from app.core.models import Run, RunKind, RunStatus, StepRecord
from app.db.approval_store import ApprovalStore
from app.db.call_store import CallStore
from app.db.engine import Database
from app.db.inbox_store import InboxStore
from app.db.log_store import LogStore
from app.db.run_store import RunDraft, RunStore
from app.redis.clients import RedisClients
from app.redis.publisher import Publisher
from app.redis.queue import Queue
from support.forked import ForkedProcess, start_forked
from support.scripted_model import Answer, ScriptedModel, chat_reply
from support.servers import free_port

_CODE = """
import sys
from support.failpoints import arm
arm()
from app.config import Settings
from app.worker.main import serve
sys.exit(serve(Settings()))
"""


def says(
    text: str, *calls: tuple[str, dict[str, Any] | str], usage: tuple[int, int] | None = (10, 5)
) -> Answer:
    """A reply with words and calls of tools."""
    made = [
        (f"call_{uuid.uuid4().hex[:8]}", name, args if isinstance(args, str) else orjson.dumps(args).decode())
        for name, args in calls
    ]
    return Answer(chat_reply(text, made, usage=usage))


class Agents:
    """One deployment. `settings` are environment variables of every worker that is started from then on."""

    def __init__(self, folder: Path, redis_url: str, database_url: str, **settings: str) -> None:
        self.folder = folder
        self.model = ScriptedModel()
        self.database = Database(database_url)
        self.runs, self.calls = RunStore(self.database), CallStore(self.database)
        self.approvals, self.inbox = ApprovalStore(self.database), InboxStore(self.database)
        self._redis = RedisClients(redis_url)
        self.workers: list[ForkedProcess] = []
        self.submitted: list[str] = []
        self.settings = {
            **os.environ,
            "DATA_DIR": str(folder / "data"),
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "LLM_URL": self.model.url,
            "LLM_MODEL": "scripted",
            "LLM_KEY": "sk-very-secret-key-of-the-model",
            "LEASE_S": "4",
            "DRAIN_S": "0",
            **settings,
        }

    def start_worker(self, **more: str) -> ForkedProcess:
        log = self.folder / f"worker{len(self.workers)}.log"
        env = {**self.settings, "WORKER_PORT": str(free_port()), **more}
        self.workers.append(start_forked(_CODE, env, log))
        return self.workers[-1]

    async def submit(self, prompt: str, *, agent: dict[str, Any] | None = None, **fields: Any) -> str:
        spec = {"prompt": prompt, "planner": "agent", **fields.pop("spec", {})}
        draft: dict[str, Any] = {
            "user_id": "ann",
            "max_attempts": 1,
            "timeout_s": 120.0,
            "labels": {},
            **fields,
        }
        new = RunDraft(
            run_id=str(uuid.uuid4()),
            kind=RunKind.PROMPT,
            spec=spec,
            start=True,
            agent=agent,
            **draft,
        )
        created = await self.runs.create(new, now_us())
        await Queue(self._redis).push_run(created.run, now_us())
        self.submitted.append(new.run_id)
        return new.run_id

    async def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 60) -> None:
        """Wait for a condition, which may be a coroutine function."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
            await asyncio.sleep(0.02)

    async def died(self, worker: ForkedProcess) -> None:
        await asyncio.to_thread(worker.wait, 60)

    async def run(self, run_id: str) -> Run:
        found = await self.runs.get(run_id)
        assert found is not None
        return found

    async def ended(self, run_id: str, timeout_s: float = 60) -> Run:
        async def over() -> bool:
            return (await self.run(run_id)).ended_at is not None

        await self.until(over, "the run's end", timeout_s)
        return await self.run(run_id)

    async def waits(self, run_id: str) -> None:
        async def waits() -> bool:
            return (await self.run(run_id)).status is RunStatus.WAITING

        await self.until(waits, "the run to wait")

    async def decide(self, of: Approval, decision: Decision, note: str | None = None) -> None:
        """Decide as the API does."""
        decided = await self.approvals.decide(of, decision, now_us(), by="bob", note=note)
        await self._woken(decided.changed.run)

    async def say(self, run_id: str, content: str, mode: MessageMode = MessageMode.NEXT) -> None:
        """Write to an agent as the API does."""
        message = InboxMessage(run_id=run_id, content=content, mode=mode, by="bob", created_at=now_us())
        run = (await self.inbox.add(message)).changed.run
        await self._woken(run)
        if run.status is RunStatus.RUNNING:
            await Publisher(self._redis).signal(run_id, "MESSAGE")

    async def cancel(self, run_id: str) -> None:
        await self.runs.request_cancel(run_id, now_us())
        await Publisher(self._redis).signal(run_id, "STOP")

    async def _woken(self, run: Run) -> None:
        if run.status is RunStatus.QUEUED:
            await Queue(self._redis).push_run(run, now_us(), front=True)

    async def do(self, prompt: str, **fields: Any) -> Run:
        """Submit and wait for the end."""
        return await self.ended(await self.submit(prompt, **fields))

    async def steps(self, run_id: str) -> list[StepRecord]:
        return await self.runs.steps(run_id)

    async def calls_of(self, run_id: str) -> list[CallRecord]:
        return await self.calls.of_run(run_id)

    async def events(self, run_id: str) -> list[Event]:
        return await LogStore(self.database).page(run_id, 0, 1000)

    def told(self, at: int = -1) -> list[str]:
        """What the request of this number told of calls of tools, in order."""
        messages = self.model.asked[at].body["messages"]
        return [each["content"] for each in messages if each["role"] == "tool"]

    async def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            await asyncio.to_thread(worker.wait, 60)
        for log in sorted(self.folder.glob("worker*.log")):
            print(f"-- {log.name}:", *log.read_text(errors="replace").splitlines()[-40:], sep="\n")
        self.model.close()
        await self._redis.close()
        await self.database.close()
