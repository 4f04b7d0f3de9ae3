"""Which calls of tools ask: what the deployment names always, beyond that what the run says, else `auto`."""

from __future__ import annotations

from typing import Any

import pytest

from app.agent.order import AgentOrder
from app.agent.policy import asks
from app.config import Settings
from app.core.models import ResourceRequest, Step

SHELL, FILE = (
    Step("c1-1", "shell", {"command": "ls"}),
    Step("c1-1", "file_write", {"path": "a", "content": ""}),
)
ONLINE = Step("c1-1", "shell", {"command": "ls"}, wants=ResourceRequest(network="egress"))


@pytest.mark.parametrize(
    ("deployment", "run", "step", "executor", "rule"),
    [
        ("auto", None, SHELL, "local", "auto: not isolated"),
        ("auto", None, FILE, "local", None),
        ("auto", None, SHELL, "kubernetes", None),
        ("auto", None, ONLINE, "kubernetes", "auto: reaches a network"),
        ("none", None, SHELL, "local", None),
        ("auto", (), SHELL, "local", None),
        ("none", ("file_write",), FILE, "local", "run"),
        ("none", ("file_write",), SHELL, "local", None),
        ("shell, code", None, SHELL, "kubernetes", "deployment"),
        ("shell, code", None, FILE, "local", None),
        ("shell", (), SHELL, "local", "deployment"),
        ("file_write", (), FILE, "local", "deployment"),
    ],
)
def test_who_says_what_asks(
    deployment: str, run: tuple[str, ...] | None, step: Step, executor: str, rule: str | None
) -> None:
    values: dict[str, Any] = {"AGENT_APPROVE": deployment, "TOOL_EXECUTOR": executor}
    assert asks(step, AgentOrder(approve=run), Settings(**values)) == rule
