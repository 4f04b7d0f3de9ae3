"""The packaged prompt: small, whole, and changed only on purpose."""

from __future__ import annotations

import hashlib

import pytest

from app.agent.agent_tools import specs_of
from app.agent.order import AgentOrder
from app.agent.prompt import system_prompt
from app.config import AgentSettings

GOLDEN = {
    "plain": "38a96037405d2aab6c9504128e7bf3b01ae8cd025bc41c865fed13775e943d1a",
    "schema": "812711144cab84a9d337e04723223b0331540cba91c71701e7bf157f0dd4f57f",
}
"""SHA-256 of the texts. Changed one on purpose? Read it once more as a whole, and put the new sum here."""


@pytest.mark.parametrize("schema", [False, True])
@pytest.mark.parametrize("network", [None, "none", "internet"])
def test_it_is_small_and_nothing_in_it_is_left_to_fill(network: str | None, schema: bool) -> None:
    text = system_prompt(network=network, schema=schema)
    assert len(text.encode()) / 4 <= 900
    assert "{" not in text


@pytest.mark.parametrize(("name", "schema"), [("plain", False), ("schema", True)])
def test_it_is_the_one_that_was_reviewed(name: str, schema: bool) -> None:
    text = system_prompt(network="none", schema=schema)
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN[name]


def test_the_instructions_of_a_run_come_last() -> None:
    assert system_prompt(instructions="Be brief.\n").endswith("# Instructions for this run\n\nBe brief.")


def test_the_form_of_the_result_is_the_schema_of_finish() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    order = AgentOrder.of({"result_schema": schema, "tools": ["file_read"]}, AgentSettings())
    tools = {spec.name: spec.parameters for spec in specs_of(order)}
    assert list(tools) == ["file_read", "plan", "ask_user", "finish"]
    assert tools["finish"]["properties"]["result"] == schema
