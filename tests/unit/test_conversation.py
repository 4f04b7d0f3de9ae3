"""The conversation is a function of rows: every order of them, every crash, gives one that servers take."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from app.agent.conversation import (
    INTERRUPTED,
    SKIPPED,
    CallResult,
    ModelCall,
    ToolStatus,
    UserMessage,
    View,
    conversation,
    decode_reply,
    encode_reply,
)
from app.core.agent_records import CallStatus
from app.llm.dialect import Learned
from app.llm.messages import Messages
from app.llm.model import Finish, ModelRequest, Reply, TokenUsage, ToolCall, ToolTurn, UserTurn
from app.llm.models_file import ModelConfig

CONFIG = ModelConfig(name="m", model="some")


def reply(n: int, calls: int, text: str = "ok") -> Reply:
    made = tuple(ToolCall(f"c{n}-{k}", "look", "{}") for k in range(calls))
    return Reply("other", "chat", {}, text, made, Finish.CALLS if made else Finish.STOP)


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[ModelCall], list[CallResult], list[UserMessage]]:
    """Rows that a run may have left, at whatever point its worker ended."""
    calls: list[ModelCall] = []
    results: list[CallResult] = []
    inbox = [UserMessage(k, f"message {k}") for k in range(1, draw(st.integers(0, 4)) + 1)]
    upto = 0
    for n in range(1, draw(st.integers(0, 5)) + 1):
        status = draw(st.sampled_from(CallStatus))
        upto = draw(st.integers(upto, len(inbox)))
        said = reply(n, draw(st.integers(0, 3))) if status is CallStatus.ANSWERED else None
        calls.append(ModelCall(n, status, upto, said))
        for k in range(len(said.calls) if said else 0):
            state = draw(st.none() | st.sampled_from(ToolStatus))
            results += [] if state is None else [CallResult(n, k, state, f"result {n}-{k}")]
    return calls, results, inbox


@given(rows())
def test_every_call_has_one_result_directly_behind_its_reply(
    found: tuple[list[ModelCall], list[CallResult], list[UserMessage]],
) -> None:
    calls, results, inbox = found
    turns = conversation("go", calls, results, inbox)
    assert turns[0] == UserTurn("go")
    at = 0
    while at < len(turns):
        turn = turns[at]
        wanted = [call.id for call in turn.calls] if isinstance(turn, Reply) else []
        behind = turns[at + 1 : at + 1 + len(wanted)]
        assert [each.call_id for each in behind if isinstance(each, ToolTurn)] == wanted
        at += 1 + len(wanted)
    assert [turn for turn in turns if isinstance(turn, Reply)] == [c.reply for c in calls if c.reply]
    assert [turn.text for turn in turns if isinstance(turn, UserTurn)] == ["go", *(m.content for m in inbox)]


@given(rows(), st.integers(0, 1_000))
def test_the_order_of_rows_does_not_matter(
    found: tuple[list[ModelCall], list[CallResult], list[UserMessage]], seed: int
) -> None:
    calls, results, inbox = found
    mixed = [list(each) for each in found]
    for each in mixed:
        Random(seed).shuffle(each)
    assert conversation("go", *mixed) == conversation("go", calls, results, inbox)  # type: ignore[arg-type]


@given(rows())
def test_what_was_said_stays_as_it_was(
    found: tuple[list[ModelCall], list[CallResult], list[UserMessage]],
) -> None:
    """One call more only adds: the beginning of the conversation, which servers cache, is the same."""
    calls, results, inbox = found
    done = [each for each in results if each.status in (ToolStatus.DONE, ToolStatus.REFUSED)]
    finished = [
        call
        for call in calls
        if call.reply is None or len(call.reply.calls) == sum(r.n == call.n for r in done)
    ]
    before = conversation("go", finished, done, inbox)
    after = [*finished, ModelCall(99, CallStatus.ANSWERED, len(inbox), reply(99, 0))]
    assert conversation("go", after, done, inbox)[: len(before)] == before


@given(rows())
def test_it_can_be_written_in_a_dialect_that_wants_turns_to_alternate(
    found: tuple[list[ModelCall], list[CallResult], list[UserMessage]],
) -> None:
    request = ModelRequest("Be good.", conversation("go", *found))
    roles = [each["role"] for each in Messages().body(CONFIG, request, Learned())["messages"]]
    assert all(one != other for one, other in pairwise(roles))
    assert roles[0] == "user"


@given(rows(), st.integers(0, 6), st.integers(0, 6))
def test_what_is_left_out_of_a_long_one_breaks_no_pair_and_hides_nothing_of_the_user(
    found: tuple[list[ModelCall], list[CallResult], list[UserMessage]], stubs: int, dropped: int
) -> None:
    calls, results, inbox = found
    long = [replace(each, for_model="x" * 5_000) for each in results]
    turns = conversation("go", calls, long, inbox, View(stubs, dropped))
    replies = [turn for turn in turns if isinstance(turn, Reply)]
    assert replies == [c.reply for c in calls if c.reply and c.n > dropped]
    wanted = [call.id for reply in replies for call in reply.calls]
    assert [turn.call_id for turn in turns if isinstance(turn, ToolTurn)] == wanted
    said = {turn.text for turn in turns if isinstance(turn, UserTurn)}
    assert said >= {"go", *(message.content for message in inbox)}
    for turn in turns:
        if isinstance(turn, ToolTurn) and int(turn.call_id[1 : turn.call_id.index("-")]) <= stubs:
            assert len(turn.text) < 1_500


def test_what_became_of_a_call_is_told() -> None:
    broken = ToolCall("c1-3", "look", "{", problem="The arguments are no JSON.")
    said = Reply("m", "chat", {}, "", (*reply(1, 3).calls, broken))
    results = [CallResult(1, 0, ToolStatus.DONE, "found"), CallResult(1, 1, ToolStatus.INTERRUPTED, "half")]
    turns = conversation("go", [ModelCall(1, CallStatus.ANSWERED, 0, said)], results)
    told = [turn.text for turn in turns if isinstance(turn, ToolTurn)]
    assert told == ["found", f"{INTERRUPTED} half", SKIPPED, "The arguments are no JSON."]


def test_a_reply_is_the_same_after_its_row() -> None:
    said = Reply(
        "m",
        "chat",
        {"role": "assistant", "content": None, "thing": [1, {"a": "ä"}]},
        calls=(ToolCall("c1", "look", '{"at":1}', {"at": 1}, "no"),),
        finish=Finish.LENGTH,
        usage=TokenUsage(1, 2, 3, 4, 5, estimated=True),
        response_id="r",
    )
    assert decode_reply(encode_reply(said)) == said
    assert decode_reply(encode_reply(said).replace(b'{"model"', b'{"newer":1,"model"')) == said
