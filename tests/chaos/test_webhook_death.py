"""A worker dies between the end of a run and the delivery of its webhook; it is delivered all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stack import Stack, shell, wait_for
from support.webhook_receiver import SECRET, Receiver, verify


@pytest.fixture
def stack(tmp_path: Path, system_url: str) -> Iterator[Stack]:
    settings = {"WEBHOOK_SECRET": SECRET, "WEBHOOK_ALLOW_PRIVATE": "1"}
    stack = Stack(tmp_path, system_url, WEBHOOK_MAX_ATTEMPTS="100", **settings)
    yield stack
    stack.close()


def test_the_next_worker_delivers_what_a_killed_one_could_not(stack: Stack) -> None:
    """Nobody listens until the worker is dead, so it can't have delivered; then exactly one message comes."""
    receiver = Receiver()
    receiver.close()
    run_id = stack.submit(shell("echo hello"), webhook_url=receiver.url)
    assert stack.wait_end(run_id)["webhook_url"] == receiver.url
    state = stack.http.get(f"/v1/runs/{run_id}/webhook").json()
    assert (state["status"], state["url"]) == ("pending", receiver.url)
    stack.workers[0].kill()
    receiver = Receiver(receiver.port)
    try:
        stack.workers.append(stack.add_worker(9))
        wait_for(lambda: receiver.got, "a webhook", timeout_s=120)
        path = f"/v1/runs/{run_id}/webhook"
        wait_for(lambda: stack.http.get(path).json()["status"] == "delivered", "the note of it")
        [(headers, body)] = receiver.got
        verify(SECRET, headers, body)
        assert json.loads(body)["data"]["run_id"] == run_id
    finally:
        receiver.close()


def test_what_has_no_webhook_or_a_bad_one_says_so(stack: Stack) -> None:
    plain = stack.submit(shell("true"))
    answer = stack.http.get(f"/v1/runs/{plain}/webhook")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_webhook")
    held = {"argv": ["true"], "start": False, "webhook_url": "https://example.com/"}
    run_id = stack.http.post("/v1/runs", json=held).json()["run_id"]
    assert stack.http.get(f"/v1/runs/{run_id}/webhook").json()["status"] == "waiting"
    for url in ("ftp://example.com/", "https://me:secret@example.com/"):
        answer = stack.http.post("/v1/runs", json={"argv": ["true"], "webhook_url": url})
        assert answer.status_code == 422
        assert "webhook_url" in answer.json()["error"]["message"]
