"""Which calls of tools have to be approved before they run.

The tools that the deployment names (`AGENT_APPROVE`) always ask; beyond them a run says what asks
(`approve`). Where it does not, `auto` asks where nothing keeps a program from what it must not touch: for
all programs of the worker's own machine; in a cluster for those that reach a network.
"""

from __future__ import annotations

from app.agent.order import AgentOrder
from app.agent.tools.router import runs_program
from app.config import Settings
from app.core.models import Step

AUTO, NONE = "auto", "none"


def asks(step: Step, order: AgentOrder, settings: Settings) -> str | None:
    """Return the rule by which a step has to be approved; None: it may run."""
    rule = settings.agent.approve
    if rule not in {AUTO, NONE} and step.tool in rule.replace(",", " ").split():
        return "deployment"
    if order.approve is not None:
        return "run" if step.tool in order.approve else None
    if rule != AUTO or not runs_program(step):
        return None
    if settings.tools.executor == "local":
        return "auto: not isolated"
    reached = step.wants.network or settings.kubernetes.network
    return "auto: reaches a network" if reached != "none" else None
