"""Every quirk of a server in tests/data/llm, over real HTTP: what it sends, and what must come of it.

A file says `about` (what is odd), `seen` (where), `answers` (what the server sends, one a request)
and `expect`. Keys of `expect` that are left out are not looked at; see `_holds`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.scripted_model import Act, Answer, ScriptedModel

from app.llm.client import ModelClient
from app.llm.failures import ModelFailure
from app.llm.model import Delta, ModelRequest, Piece, Reply, Retrying, ToolSpec, Turn, UserTurn
from app.llm.models_file import ModelConfig

CORPUS = sorted((Path(__file__).parents[1] / "data" / "llm").glob("*.yaml"))
LOOK = ToolSpec("look", "Looks.", {"type": "object", "properties": {"at": {"type": "string"}}})
KNOWN = {
    *("text", "reasoning", "empty", "calls", "made_ids", "finish", "usage", "estimated"),
    *("message", "message_exactly", "requests", "retried", "void", "lacks", "has", "turn_lacks"),
    *("learned_for_good", "failure", "says", "never"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedModel]:
    server = ScriptedModel()
    yield server
    server.close()


@pytest.fixture
def quirk(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(request.param.read_text(encoding="utf-8"))
    assert found["about"]
    assert found["seen"]
    assert found["expect"].keys() <= KNOWN
    return found


@pytest.fixture
async def model(
    quirk: dict[str, Any], server: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ModelClient]:
    monkeypatch.setattr("app.llm.client._BASE_S", 0.001)
    dialect = quirk.get("dialect", "chat")
    config = ModelConfig(
        name="m",
        model="m",
        url=server.url if dialect == "chat" else server.root,
        key="test-key-0001",
        dialect=dialect,
        **quirk.get("settings", {}),
    )
    client = ModelClient(config)
    yield client
    await client.aclose()


def answer(given: dict[str, Any], size: int) -> Answer:
    """Write an answer as pieces of `size` bytes."""
    body = given["body"].encode()
    acts: list[Act] = [body[at : at + size] for at in range(0, len(body), size)]
    kind = given.get("type", "text/event-stream")
    return Answer(*acts, status=given.get("status", 200), headers=given.get("headers"), content_type=kind)


def turns(given: list[dict[str, Any]]) -> tuple[Turn, ...]:
    said = [
        UserTurn(turn["user"])
        if "user" in turn
        else Reply("m", "chat", turn["assistant"], turn["assistant"]["content"])
        for turn in given
    ]
    return tuple(said)


async def call(model: ModelClient, request: ModelRequest) -> tuple[list[Piece], ModelFailure | None]:
    found: list[Piece] = []
    try:
        async with model.stream(request) as pieces:
            async for piece in pieces:
                found.append(piece)  # noqa: PERF401 - what came before a failure counts
    except ModelFailure as failure:
        return found, failure
    return found, None


@pytest.mark.parametrize("size", [1_000_000, 7], ids=["whole", "in pieces"])
@pytest.mark.parametrize("quirk", CORPUS, indirect=True, ids=lambda path: path.stem)
async def test_a_quirk(quirk: dict[str, Any], model: ModelClient, server: ScriptedModel, size: int) -> None:
    server.asked.clear()
    server.script(*(answer(each, size) for each in quirk["answers"]))
    request = ModelRequest("Be good.", turns(quirk.get("turns", [{"user": "hi"}])), (LOOK,))
    pieces, failure = await call(model, request)
    expect = quirk["expect"]
    assert len(server.asked) == expect.get("requests", 1)
    if "failure" in expect:
        assert failure is not None
        assert failure.code == expect["failure"]
        assert expect.get("says", "") in failure.message
        assert expect.get("never", "\0") not in failure.message
        return
    assert failure is None
    _told(pieces, expect)
    reply = pieces[-1]
    assert isinstance(reply, Reply)
    _holds(reply, expect)
    last = server.asked[-1].body
    assert [name for name in expect.get("lacks", ()) if name in last] == []
    assert [name for name in expect.get("has", ()) if name not in last] == []
    for message in last["messages"]:
        assert [name for name in expect.get("turn_lacks", ()) if name in message] == []
    if expect.get("learned_for_good"):
        await call(model, request)
        assert len(server.asked) == expect["requests"] + 1


def _told(pieces: list[Piece], expect: dict[str, Any]) -> None:
    """Hold what came before the reply: the deltas are its text, and what was void is said to be."""
    retries = [place for place, piece in enumerate(pieces) if isinstance(piece, Retrying)]
    start = retries[-1] + 1 if retries else 0
    shown = {
        kind: "".join(each.text for each in pieces[start:] if isinstance(each, Delta) and each.kind == kind)
        for kind in ("text", "reasoning")
    }
    reply = pieces[-1]
    assert isinstance(reply, Reply)
    assert shown["text"] == (reply.text if expect.get("finish") != "refused" else shown["text"])
    assert shown["reasoning"] == expect.get("reasoning", shown["reasoning"])
    void = "".join(each.text for each in pieces[:start] if isinstance(each, Delta))
    if "void" in expect:
        assert void == expect["void"]
        assert reply.wasted.estimated
        assert reply.wasted.output > 0
    if "retried" in expect:
        [retry] = [piece for piece in pieces if isinstance(piece, Retrying)]
        assert expect["retried"] in retry.message


def _holds(reply: Reply, expect: dict[str, Any]) -> None:
    assert reply.text == expect.get("text", reply.text)
    assert reply.empty is expect.get("empty", reply.empty)
    assert reply.finish == expect.get("finish", reply.finish)
    for name, value in expect.get("usage", {}).items():
        assert getattr(reply.usage, name) == value
    assert reply.usage.estimated is expect.get(
        "estimated", False if "usage" in expect else reply.usage.estimated
    )
    assert reply.usage.total > 0
    for key, value in expect.get("message", {}).items():
        assert reply.message[key] == value
    assert reply.message == expect.get("message_exactly", reply.message)
    if "calls" in expect:
        assert len(reply.calls) == len(expect["calls"])
    for call_, wanted in zip(reply.calls, expect.get("calls", ()), strict=False):
        assert (call_.name, call_.arguments) == (wanted["name"], wanted["arguments"])
        assert call_.id == wanted.get("id", call_.id)
        assert bool(call_.problem) is ("problem" in wanted)
        assert wanted.get("problem", "") in call_.problem
    ids = [each.id for each in reply.calls]
    assert len(set(ids)) == len(ids)
    assert all(ids)
    made = [each for each in ids if len(each) == 9 and each.isalnum()]
    assert len(made) == expect.get("made_ids", len(made))


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) > 90
