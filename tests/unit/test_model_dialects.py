"""What dialects write and how fragments of calls find together, without a server."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.llm.calls import CallAssembly, new_id
from app.llm.chat import Chat
from app.llm.dialect import Learned, input_estimate
from app.llm.failures import retry_after
from app.llm.messages import Messages
from app.llm.model import Finish, ModelRequest, Reply, ToolCall, ToolSpec, ToolTurn, UserTurn
from app.llm.models_file import ModelConfig

CONFIG = ModelConfig(name="m", model="some", max_output_tokens=100, extra_body={"seed": 1})
LOOK = ToolSpec("look", "Looks.", {"type": "object", "properties": {}})
CALLS = (ToolCall("a1", "look", '{"at":"x"}', {"at": "x"}), ToolCall("a2", "look", "{", problem="broken"))
CHAT_MESSAGE: dict[str, Any] = {
    "role": "assistant",
    "content": "I look.",
    "thing": 1,
    "tool_calls": ["as it was"],
}
BLOCKS: list[dict[str, Any]] = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}]


def reply(model: str, dialect: str, message: dict[str, Any]) -> Reply:
    return Reply(model, dialect, message, "I look.", CALLS, Finish.CALLS)


def conversation(said: Reply) -> ModelRequest:
    results = (ToolTurn("a1", ""), ToolTurn("a2", "broken"))
    return ModelRequest("Be good.", (UserTurn("hi"), said, *results, UserTurn("and now?")), (LOOK,))


def test_chat_echoes_its_own_message_verbatim() -> None:
    said = reply("m", "chat", CHAT_MESSAGE)
    body = Chat().body(CONFIG, conversation(said), Learned())
    assert [each["role"] for each in body["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "user",
    ]
    assert body["messages"][2] == CHAT_MESSAGE
    assert body["messages"][3] == {"role": "tool", "tool_call_id": "a1", "content": "(no output)"}
    assert body["seed"] == 1
    assert body["max_tokens"] == 100
    assert not {"strict", "tool_choice", "parallel_tool_calls", "temperature"} & body.keys()


def test_another_models_reply_goes_as_text_and_calls() -> None:
    """Its thoughts and unknown fields stay out; broken arguments are `{}`."""
    for said in (reply("other", "chat", CHAT_MESSAGE), reply("m", "messages", {"content": BLOCKS})):
        message = Chat().body(CONFIG, conversation(said), Learned())["messages"][2]
        assert message.keys() == {"role", "content", "tool_calls"}
        assert [call["function"]["arguments"] for call in message["tool_calls"]] == ['{"at":"x"}', "{}"]


def test_messages_puts_results_first_and_alternates() -> None:
    """Results of tools and what the user wrote after them are one message, results first."""
    said = reply("m", "messages", {"role": "assistant", "content": BLOCKS})
    body = Messages().body(CONFIG, conversation(said), Learned())
    assert body["system"] == "Be good."
    assert [each["role"] for each in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == BLOCKS
    last = body["messages"][2]["content"]
    assert [block["type"] for block in last] == ["tool_result", "tool_result", "text"]
    assert last[0]["content"] == "(no output)"


def test_messages_writes_another_models_calls_as_blocks() -> None:
    body = Messages().body(CONFIG, conversation(reply("m", "chat", CHAT_MESSAGE)), Learned())
    assert body["messages"][1]["content"] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "a1", "name": "look", "input": {"at": "x"}},
        {"type": "tool_use", "id": "a2", "name": "look", "input": {}},
    ]


@pytest.mark.parametrize("dialect", [Chat(), Messages()])
def test_no_empty_text_is_sent(dialect: Chat | Messages) -> None:
    silent = Reply("other", "chat", {}, "")
    body = dialect.body(CONFIG, ModelRequest(" ", (UserTurn(""), silent, UserTurn(""))), Learned())
    assert '""' not in json.dumps(body["messages"])
    assert "system" not in json.dumps(body)


def fragments(calls: list[tuple[str, str]], cuts: list[int], style: str) -> list[dict[str, Any]]:
    """Cut calls of (name, arguments) into fragments, in a style that servers have."""
    found: list[dict[str, Any]] = []
    for index, (name, arguments) in enumerate(calls):
        places = sorted({0, len(arguments), *(cut % (len(arguments) + 1) for cut in cuts)})
        pieces = [arguments[a:b] for a, b in pairwise(places)] or [""]
        for n, piece in enumerate(pieces):
            first = n == 0
            function: dict[str, Any] = {"arguments": piece}
            fragment: dict[str, Any] = {"function": function}
            if first or style == "name repeated":
                function["name"] = name
            if style != "no index":
                fragment["index"] = 0 if style == "one index" else index
            if style == "id repeated" or (first and style != "no id"):
                fragment["id"] = f"id-{index}"
            found.append(fragment)
    return found


ARGUMENTS = st.dictionaries(st.text(max_size=5), st.text(max_size=20), min_size=1, max_size=3).map(json.dumps)


@given(
    calls=st.lists(
        st.tuples(st.sampled_from(["look", "take", "find_it"]), ARGUMENTS), min_size=1, max_size=4
    ),
    cuts=st.lists(st.integers(0, 100), max_size=4),
    style=st.sampled_from(["plain", "id repeated", "name repeated", "no index", "one index", "no id"]),
)
def test_calls_are_the_same_however_they_are_cut(
    calls: list[tuple[str, str]], cuts: list[int], style: str
) -> None:
    assembly = CallAssembly()
    for fragment in fragments(calls, cuts, style):
        assembly.feed([fragment])
    found = assembly.finish(cut=False)
    assert [(call.name, call.arguments) for call in found] == [(n, json.loads(a)) for n, a in calls]
    assert [call.problem for call in found] == [""] * len(calls)
    assert len({call.id for call in found}) == len(calls)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(
        st.lists(JSON | st.fixed_dictionaries({"function": JSON, "id": JSON, "index": JSON})), max_size=5
    )
)
def test_no_fragment_breaks_the_assembly(chunks: list[list[Any]]) -> None:
    assembly = CallAssembly()
    for chunk in chunks:
        assembly.feed(chunk)
    calls = assembly.finish(cut=True)
    assert len(assembly.message(calls)) == len(calls)
    assert len({call.id for call in calls}) == len(calls)


def test_a_reply_has_so_many_calls_at_most() -> None:
    assembly = CallAssembly()
    assembly.feed([{"id": str(n), "function": {"name": "look", "arguments": "{}"}} for n in range(1_000)])
    assert len(assembly.finish(cut=False)) == 128
    assert assembly.dropped == 872


def test_made_ids_suit_everybody() -> None:
    assert len({new_id() for _ in range(1_000)}) == 1_000
    assert len(new_id()) == 9
    assert new_id().isalnum()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "9999999999"}, 86_400),
    ],
)
def test_a_pause_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


@pytest.mark.parametrize("process", ["app.main", "app.worker.main", "app.llm.client", "app.commands.models"])
def test_the_makers_libraries_are_loaded_by_the_first_call(process: str) -> None:
    """They take a second and tens of megabytes, which the API and a worker without models never pay."""
    script = f"import sys, {process}; print({{'openai', 'anthropic'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_an_estimate_grows_with_the_text() -> None:
    short, long = (
        input_estimate(ModelRequest("", (UserTurn("x" * size),), (LOOK,))) for size in (4_000, 8_000)
    )
    assert 900 < long - short < 1_100
