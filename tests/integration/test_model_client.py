"""A model's limits and retries over real HTTP: time, overload, cuts, cancel, certificates, proxies."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.scripted_model import (
    Answer,
    Cut,
    Hang,
    Repeat,
    ScriptedModel,
    Stall,
    Until,
    chat_reply,
    chunk,
    error,
    event,
    messages_reply,
)

from app.llm.client import ModelClient
from app.llm.failures import ModelFailure, ModelRejected, ModelUnavailable, PauseAsked
from app.llm.model import Delta, ModelRequest, Piece, Reply, Retrying, UserTurn
from app.llm.models_file import ModelConfig

HI = ModelRequest("Be good.", (UserTurn("hi"),))
DIALECTS = ("chat", "messages")
Make = Callable[..., ModelClient]


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    server = ScriptedModel()
    yield server
    server.close()


@pytest.fixture
async def make(server: ScriptedModel) -> AsyncIterator[Make]:
    """Makes clients of the server; `chance` 0: no time passes between tries."""
    made: list[ModelClient] = []

    def of(dialect: str = "chat", **settings: Any) -> ModelClient:
        url = server.url if dialect == "chat" else server.root
        given = {"name": "m", "model": "m", "url": url, "dialect": dialect, "retries": 2} | settings
        made.append(ModelClient(ModelConfig.model_validate(given), chance=lambda: 0.0))
        return made[-1]

    yield of
    for each in made:
        await each.aclose()


async def call(model: ModelClient) -> list[Piece]:
    async with model.stream(HI) as pieces:
        return [piece async for piece in pieces]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


def whole(dialect: str) -> bytes:
    return chat_reply("all is well") if dialect == "chat" else messages_reply("all is well")


def begun(dialect: str) -> bytes:
    if dialect == "chat":
        return chunk({"content": "all"})
    return (
        event("message_start", message={"id": "m-1", "usage": {"input_tokens": 10}})
        + event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        + event("content_block_delta", index=0, delta={"type": "text_delta", "text": "all"})
    )


BAD: dict[str, Callable[[str], Answer]] = {
    "500": lambda _: error(500, "later"),
    "429": lambda _: error(429, "slower"),
    "in-stream error": lambda dialect: Answer(
        begun(dialect), b'event: error\ndata: {"type": "error", "error": {"message": "later"}}\n\n'
    ),
    "cut": lambda dialect: Answer(begun(dialect), Cut()),
    "cut in an event": lambda dialect: Answer(begun(dialect)[:-7], Cut()),
    "cut before the head": lambda _: Answer(Cut(), status=200),
    "end without a finish": lambda dialect: Answer(begun(dialect)),
    "stall": lambda dialect: Answer(begun(dialect), Stall()),
    "no head": lambda _: Answer(Hang()),
    "no token": lambda _: Answer(Stall()),
}
LIMITS = {kind: {"idle_s": 2, "first_token_s": 2} for kind in ("stall", "no head", "no token")}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", list(BAD))
async def test_what_goes_wrong_is_tried_again(
    kind: str, dialect: str, server: ScriptedModel, make: Make
) -> None:
    """One bad answer, then a good one: two requests, a reply, and what was void is said so."""
    server.script(BAD[kind](dialect), Answer(whole(dialect)))
    pieces = await call(make(dialect, **LIMITS.get(kind, {})))
    assert [type(piece) for piece in pieces].count(Retrying) == 1
    reply = pieces[-1]
    assert isinstance(reply, Reply)
    assert reply.text == "all is well"
    assert len(server.asked) == 2
    told = any(isinstance(piece, Delta) for piece in pieces[: pieces.index(_retry(pieces))])
    assert bool(reply.wasted.output) is told


def _retry(pieces: list[Piece]) -> Piece:
    return next(piece for piece in pieces if isinstance(piece, Retrying))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", list(BAD))
async def test_what_stays_wrong_ends(kind: str, dialect: str, server: ScriptedModel, make: Make) -> None:
    """After the retries that are set: as many requests, no hidden one, and a failure with a code."""
    server.script(BAD[kind](dialect))
    with pytest.raises(ModelUnavailable) as failed:
        await call(make(dialect, retries=1, **LIMITS.get(kind, {})))
    assert failed.value.code == "model_unavailable"
    assert len(server.asked) == 2
    told = kind in {"in-stream error", "cut", "end without a finish", "stall"}
    assert bool(failed.value.wasted.output) is told


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_libraries_try_nothing_again(
    dialect: str, status: int, server: ScriptedModel, make: Make
) -> None:
    server.script(error(status, "later"))
    with pytest.raises(ModelUnavailable):
        await call(make(dialect, retries=0))
    assert len(server.asked) == 1


@pytest.mark.parametrize("way", ["leave", "cancel"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_whoever_stops_listening_is_sent_no_more(
    dialect: str, way: str, server: ScriptedModel, make: Make, slack: float
) -> None:
    """The server notices within a second and stops; leaving the loop is enough."""
    endless = Repeat(begun(dialect), 0.02)
    server.script(Answer(endless))
    model, heard, held = make(dialect), asyncio.Event(), list[object]()

    async def listen() -> None:
        async with model.stream(HI) as pieces:
            held.append(pieces)  # so that it is not the garbage collector that closes
            async for _ in pieces:
                heard.set()
                if way == "leave":
                    return

    task = asyncio.create_task(listen())
    await asyncio.wait_for(heard.wait(), 30)
    if way == "cancel":
        task.cancel()
    [asked] = server.asked
    stopped, before = asyncio.get_running_loop().time(), asked.sent
    await asyncio.wait([task])
    assert await asyncio.to_thread(asked.ended.wait, 30)
    assert asked.hung_up
    assert asyncio.get_running_loop().time() - stopped < 1 * slack
    assert asked.sent - before <= 60 * slack * len(endless.piece)


async def test_a_cancel_before_the_head_hangs_up_too(server: ScriptedModel, make: Make) -> None:
    server.script(Answer(Hang()))
    task = asyncio.create_task(call(make()))
    await until(lambda: bool(server.asked))
    task.cancel()
    await asyncio.wait([task])
    assert await asyncio.to_thread(server.asked[0].ended.wait, 30)
    assert server.asked[0].hung_up


async def test_comments_keep_a_stream_alive_but_are_no_token(server: ScriptedModel, make: Make) -> None:
    """After the first token they start the idle clock anew; before it they don't help."""
    alive = Repeat(b": keep-alive\n\n", 0.2, times=15)
    server.script(Answer(begun("chat"), alive, whole("chat")))
    pieces = await call(make(idle_s=2))
    assert not any(isinstance(piece, Retrying) for piece in pieces)
    server.script(Answer(Repeat(b": keep-alive\n\n", 0.05)))
    with pytest.raises(ModelUnavailable, match="LLM_FIRST_TOKEN_S"):
        await call(make(idle_s=5, first_token_s=0.5, retries=0))


async def test_a_slow_reply_has_a_longest_time(server: ScriptedModel, make: Make) -> None:
    server.script(Answer(Repeat(begun("chat"), 0.05)))
    with pytest.raises(ModelUnavailable, match="LLM_TIMEOUT_S"):
        await call(make(timeout_s=0.5, retries=0))


async def test_silence_after_the_finish_is_the_end(
    server: ScriptedModel, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that says why it ended and then hangs has replied."""
    monkeypatch.setattr("app.llm.client._AFTER_FINISH_S", 0.2)
    server.script(Answer(chunk({"content": "all"}), chunk({}, finish="stop"), Stall()))
    reply = (await call(make(retries=0)))[-1]
    assert isinstance(reply, Reply)
    assert reply.text == "all"
    assert reply.usage.estimated
    server.script(Answer(chunk({"content": "all"}), chunk({}, finish="stop"), Cut()))
    assert isinstance((await call(make(retries=0)))[-1], Reply)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_connection_is_used_again(dialect: str, server: ScriptedModel, make: Make) -> None:
    server.script(Answer(whole(dialect)))
    model = make(dialect)
    for _ in range(3):
        await call(model)
    assert len(server.asked) == 3
    assert server.connections == 1


async def test_large_events_are_read(server: ScriptedModel, make: Make) -> None:
    """An event of two mebibytes, cut within a character."""
    text = "ä" * 1_048_576
    body = chunk({"content": text}) + chunk({}, finish="stop")
    server.script(Answer(body[:1_000_001], body[1_000_001:]))
    reply = (await call(make()))[-1]
    assert isinstance(reply, Reply)
    assert reply.text == text


async def test_an_answer_has_a_largest_size(
    server: ScriptedModel, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.llm.client._MOST_BYTES", 100_000)
    server.script(Answer(Repeat(b"x" * 10_000, 0)))
    with pytest.raises(ModelRejected, match="more than 100000 bytes"):
        await call(make())


# -- overload


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_a_short_pause_is_waited_for(status: int, server: ScriptedModel, make: Make) -> None:
    server.script(error(status, "slower", retry_after=1), Answer(whole("chat")))
    began = asyncio.get_running_loop().time()
    pieces = await call(make())
    assert asyncio.get_running_loop().time() - began >= 1
    retry = _retry(pieces)
    assert isinstance(retry, Retrying)
    assert retry.delay_s >= 1


async def test_a_long_pause_is_the_callers(server: ScriptedModel, make: Make) -> None:
    """It comes at once, with its length; whoever calls meanwhile gets it without asking the server."""
    server.script(error(429, "slower", retry_after=60))
    model = make()
    for _ in range(2):
        with pytest.raises(PauseAsked) as asked:
            await call(model)
        assert 59 <= asked.value.pause_s <= 60
    assert len(server.asked) == 1


async def test_a_pause_holds_for_every_call_of_the_model(server: ScriptedModel, make: Make) -> None:
    """One call is told to wait; ten that come meanwhile wait too, and the server sees none of them."""
    server.script(error(429, "slower", retry_after=1), Answer(whole("chat")))
    model = make()
    first = asyncio.create_task(call(model))
    await until(lambda: bool(server.asked) and server.asked[0].ended.is_set())
    await until(lambda: model._gate._left() > 0)
    others = [asyncio.create_task(call(model)) for _ in range(10)]
    while model._gate._left() > 0.1:
        assert len(server.asked) == 1
        await asyncio.sleep(0.05)
    await asyncio.gather(first, *others)
    assert len(server.asked) == 12


async def test_only_so_many_calls_are_open_at_once(server: ScriptedModel, make: Make) -> None:
    go = threading.Event()
    server.script(Answer(chunk({"content": "all"}), Until(go), whole("chat")))
    model = make(concurrency=3)
    calls = [asyncio.create_task(call(model)) for _ in range(9)]
    try:
        await until(lambda: len(server.asked) == 3)
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert len(server.asked) == 3
    finally:
        go.set()
    await asyncio.gather(*calls)
    assert len(server.asked) == 9


async def test_a_call_that_waits_at_the_gate_can_be_cancelled(server: ScriptedModel, make: Make) -> None:
    """Its place is free again."""
    server.script(Answer(Stall()))
    model = make(concurrency=1)
    first, second = asyncio.create_task(call(model)), asyncio.create_task(call(model))
    await until(lambda: len(server.asked) == 1)
    for task in (second, first):
        task.cancel()
        await asyncio.wait([task])
    server.script(Answer(whole("chat")))
    assert isinstance((await call(model))[-1], Reply)


# -- the way there


async def test_a_server_that_is_not_there(make: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(ModelUnavailable, match="could not be reached"):
            await call(make(url=url, retries=1))


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[ScriptedModel]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = ScriptedModel(tls=context)
    server.script(Answer(chat_reply("all is well")))
    yield server
    server.close()


async def test_a_private_authority_is_named(
    authority: trustme.CA, secure: ScriptedModel, make: Make, tmp_path: Path
) -> None:
    """Without LLM_CA_FILE the failure says what to set, once; with it the call works."""
    with pytest.raises(ModelRejected, match="LLM_CA_FILE"):
        await call(make(url=secure.url))
    assert secure.asked == []
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    assert isinstance((await call(make(url=secure.url, ca_file=ca_file)))[-1], Reply)
    with pytest.raises(ModelRejected, match="LLM_CA_FILE"):
        await call(make(url=secure.url, ca_file=tmp_path / "none.pem"))


async def test_a_proxy_is_used(server: ScriptedModel, make: Make) -> None:
    """The proxy is asked for the whole address; the name need not resolve here."""
    server.script(Answer(whole("chat")))
    await call(make(url="http://model.invalid/v1", proxy=server.root))
    assert server.asked[0].target == "http://model.invalid/v1/chat/completions"


async def test_a_proxy_that_wants_a_login(server: ScriptedModel, make: Make) -> None:
    server.script(error(407, "who are you?"))
    with pytest.raises(ModelRejected, match="LLM_PROXY"):
        await call(make(url="http://model.invalid/v1", proxy=server.root))


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_key_is_sent_and_never_said(dialect: str, server: ScriptedModel, make: Make) -> None:
    """A key goes out as the library sends it; without one no header does; a server's quote is masked."""
    quote = "the key secret-0001 is odd"
    within = Answer(
        b'event: error\ndata: {"error": {"type": "invalid_request_error", "message": "%s"}}\n\n'
        % quote.encode()
    )
    for answer in (error(400, quote), within):
        server.script(answer)
        with pytest.raises(ModelRejected, match=r"\*\*\* is odd") as failed:
            await call(make(dialect, key="secret-0001"))
        assert "secret-0001" in str(server.asked[-1].headers)
        assert "secret-0001" not in f"{failed.value} {failed.value.message}"
    server.script(Answer(whole(dialect)))
    await call(make(dialect))
    assert not {"authorization", "x-api-key"} & server.asked[-1].headers.keys()


async def test_the_environment_adds_nothing(
    server: ScriptedModel, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the libraries would read for themselves is not ours."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "from-outside")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    for dialect in DIALECTS:
        server.script(Answer(whole(dialect)))
        await call(make(dialect))
        assert "from-outside" not in str(server.asked[-1].headers)


async def test_a_try_in_the_middle_leaves_nothing_open(server: ScriptedModel, make: Make) -> None:
    """A consumer that raises closes the answer like one that leaves."""
    server.script(Answer(Repeat(begun("chat"), 0.02)))
    model = make()
    with pytest.raises(KeyError):
        await _fail_at_the_first_piece(model)
    assert await asyncio.to_thread(server.asked[0].ended.wait, 30)
    assert server.asked[0].hung_up
    async with aclosing(model._tries(HI)) as pieces:
        assert isinstance(await anext(pieces), Delta)
    assert await asyncio.to_thread(server.asked[1].ended.wait, 30)


async def _fail_at_the_first_piece(model: ModelClient) -> None:
    async with model.stream(HI) as pieces:
        async for _ in pieces:
            raise KeyError


def test_every_failure_has_a_code() -> None:
    assert {each.code for each in (ModelFailure, *ModelFailure.__subclasses__())} == {
        *("model_unavailable", "model_rejected", "context_overflow"),
    }
