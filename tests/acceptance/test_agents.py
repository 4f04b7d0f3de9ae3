"""What a user does with an agent, over HTTP alone: start it, watch it, approve, write to it, continue it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.agents import says
from support.scripted_model import ScriptedModel
from support.stack import Stack, wait_for


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    model = ScriptedModel()
    yield model
    model.close()


@pytest.fixture
def stack(tmp_path: Path, sqlite_url: str, model: ScriptedModel) -> Iterator[Stack]:
    stack = Stack(tmp_path, sqlite_url, LLM_URL=model.url, LLM_MODEL="scripted", LLM_KEY="k" * 20)
    yield stack
    stack.close()


def test_a_bare_prompt_is_carried_out_and_asks_before_it_runs_a_program(
    stack: Stack, model: ScriptedModel
) -> None:
    model.script(
        says("I count.", ("shell", {"command": "seq 3 > n.txt; wc -l < n.txt"})),
        says("", ("finish", {"result": "There are 3."})),
    )
    run_id = stack.submit(prompt="How many?")
    watcher = stack.watch(run_id)
    wait_for(lambda: stack.run(run_id)["status"] == "waiting", "the question")
    [asked] = stack.http.get("/v1/approvals").json()["items"]
    assert asked["args"] == {"command": "seq 3 > n.txt; wc -l < n.txt"}
    decision = {"decision": "approved", "args_sha256": asked["args_sha256"]}
    path = f"/v1/runs/{run_id}/approvals/{asked['step']}"
    assert stack.http.post(path, json=decision | {"args_sha256": "0" * 64}).status_code == 409
    assert stack.http.post(path, json=decision).status_code == 200
    run = stack.wait_end(run_id)
    assert (run["status"], run["result"]) == ("succeeded", {"text": "There are 3."})
    events: list[dict[str, Any]] = watcher.finish()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert "3" in watcher.lines()
    kinds = {event["type"] for event in events}
    assert kinds >= {"log", "model", "usage", "step", "approval", "status", "artifact", "end"}
    assert stack.http.get(f"/v1/runs/{run_id}/files/n.txt").text == "1\n2\n3\n"


def test_an_agent_is_written_to_and_then_continued(stack: Stack, model: ScriptedModel) -> None:
    model.script(says("", ("ask_user", {"question": "Which?"})), says("That one."), says("As before."))
    run_id = stack.submit(prompt="Choose.")
    wait_for(lambda: stack.run(run_id)["status"] == "waiting", "the question")
    assert stack.http.post(f"/v1/runs/{run_id}/messages", json={"content": "the left"}).status_code == 202
    assert stack.wait_end(run_id)["result"] == {"text": "That one."}
    assert stack.http.post(f"/v1/runs/{run_id}/messages", json={"content": "?"}).status_code == 409
    again = stack.submit(prompt="Once more.", continue_of=run_id)
    assert stack.wait_end(again)["result"] == {"text": "As before."}
    said = [each["content"] for each in model.asked[-1].body["messages"] if each["role"] == "user"]
    assert said == ["Choose.", "the left", "Once more."]
