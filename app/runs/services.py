"""The services that the use cases share: one of each per API process, and who is calling."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Literal

from app.config import Settings
from app.db.approval_store import ApprovalStore
from app.db.call_store import CallStore
from app.db.engine import Database
from app.db.inbox_store import InboxStore
from app.db.project_store import ProjectStore
from app.db.run_store import RunStore
from app.db.schedule_store import ScheduleStore
from app.db.token_store import TokenStore
from app.db.webhook_store import WebhookStore
from app.plan.model_names import ModelNames
from app.plan.task_types import TaskTypes
from app.redis.clients import RedisClients
from app.redis.publisher import Publisher, Tail
from app.redis.queue import DeadLetters, Queue
from app.runs.backlog import Backlog
from app.runs.open_streams import OpenStreams
from app.storage.workspace import Workspaces
from app.stream.history import LogHistory
from app.stream.hub import StreamHub

ADMIN_USER = "admin"
"""The user of the bootstrap token (`API_TOKEN`)."""


RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The form of a run id (a UUID in lower case); anything else is not looked up."""


TokenScope = Literal["user", "admin", "stream"]


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the routes share, one of each per process; it is `app.state.services`."""

    settings: Settings
    db: Database
    runs: RunStore
    schedules: ScheduleStore
    webhooks: WebhookStore
    projects: ProjectStore
    task_types: TaskTypes
    models: ModelNames
    approvals: ApprovalStore
    inbox: InboxStore
    calls: CallStore
    logs: LogHistory
    tokens: TokenStore
    redis: RedisClients
    queue: Queue
    dead: DeadLetters
    backlog: Backlog
    publisher: Publisher
    tail: Tail
    hub: StreamHub
    streams: OpenStreams
    workspaces: Workspaces
    draining: asyncio.Event


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller. `token_id` is None for the bootstrap token, `run_id` set for a stream token.

    `made_by` is the id of the token that made a stream token.
    """

    user_id: str
    scope: TokenScope
    token_id: str | None = None
    run_id: str | None = None
    made_by: str | None = None

    @property
    def rests_on(self) -> str | None:
        """The id of the token with which this access ends; None: `API_TOKEN`, which ends with the process."""
        return self.made_by if self.scope == "stream" else self.token_id

    @property
    def admin(self) -> bool:
        """Whether all users' runs and the server's internals are open to the caller."""
        return self.scope == "admin"
