"""The Messages dialect of Anthropic's models: blocks of content instead of one text.

Sent: the system text beside the messages; results of tools directly after their calls, all in one
user message and before any text. Read: blocks grow by deltas and are kept as they are (a thinking
block goes back with its signature); tokens from the cache are a part of the input here, as in the
other dialect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from app.llm.calls import CallAssembly, echoed, read
from app.llm.dialect import Learned, count, parsed, verbatim
from app.llm.failures import of_stream
from app.llm.model import NO_OUTPUT, Delta, Finish, ModelRequest, Reply, TokenUsage, ToolCall, Turn, UserTurn
from app.llm.models_file import ModelConfig
from tailrun.sse import Frame

_FINISH = {
    "end_turn": Finish.STOP,
    "stop_sequence": Finish.STOP,
    "tool_use": Finish.CALLS,
    "max_tokens": Finish.LENGTH,
    "model_context_window_exceeded": Finish.LENGTH,
    "refusal": Finish.REFUSED,
}


class Messages:
    """Writes requests and begins answers."""

    path = "/v1/messages"

    def body(self, config: ModelConfig, request: ModelRequest, learned: Learned) -> dict[str, Any]:
        """Write a request; `config.extra_body` wins over all that is written here."""
        body: dict[str, Any] = {
            "model": config.model,
            "max_tokens": request.max_output_tokens or config.max_output_tokens,
            "messages": _messages(config.name, request.turns),
            "stream": True,
        }
        if request.system.strip():
            body["system"] = request.system
        if request.temperature is not None and "temperature" not in learned.dropped:
            body["temperature"] = request.temperature
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
                for tool in request.tools
            ]
        return body | config.extra_body

    def assembly(self, name: str) -> MessagesAssembly:
        """Begin an answer."""
        return MessagesAssembly(name)


def _messages(name: str, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Join turns of one role, which the server wants to alternate; results come first within a message."""
    found: list[dict[str, Any]] = []
    for turn in turns:
        role, blocks = _blocks(name, turn)
        if found and found[-1]["role"] == role:
            found[-1]["content"] += blocks
        else:
            found.append({"role": role, "content": blocks})
    for message in found:
        if message["role"] == "user":
            message["content"].sort(key=_is_no_result)
    return found


def _is_no_result(block: dict[str, Any]) -> bool:
    return block["type"] != "tool_result"


def _blocks(name: str, turn: Turn) -> tuple[str, list[dict[str, Any]]]:
    if isinstance(turn, UserTurn):
        return "user", [{"type": "text", "text": turn.text if turn.text.strip() else NO_OUTPUT}]
    if not isinstance(turn, Reply):
        text = turn.text if turn.text.strip() else NO_OUTPUT
        return "user", [{"type": "tool_result", "tool_use_id": turn.call_id, "content": text}]
    if verbatim(turn, name, "messages"):
        return "assistant", list(turn.message["content"])
    blocks: list[dict[str, Any]] = [{"type": "text", "text": turn.text}] if turn.text.strip() else []
    blocks += [_use(call) for call in turn.calls]
    return "assistant", blocks or [{"type": "text", "text": NO_OUTPUT}]


def _use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name or "unknown", "input": read(echoed(call))}


class MessagesAssembly:
    """One answer on its way."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._blocks: dict[int, dict[str, Any]] = {}
        self._pieces: dict[tuple[int, str], list[str]] = {}
        self._counts: dict[str, int] = {}
        self._stop = ""
        self._id: str | None = None
        self._served_by: str | None = None
        self._written = 0
        self.ended = False

    @property
    def whole(self) -> bool:
        """Whether a stop reason came; it follows the last block."""
        return bool(self._stop)

    def feed(self, frame: Frame) -> Sequence[Delta]:
        """Take one event; unknown ones are ignored."""
        if frame.data.strip() == "[DONE]":
            self.ended = True
            return ()
        event = parsed(frame)
        kind = event.get("type") or frame.event
        if kind == "error" or event.get("error"):
            raise of_stream(event.get("error") or event)
        if kind == "message_start":
            self._message(event.get("message"))
        elif kind == "message":  # a server that ignores `stream`
            self._message(event)
            self.ended = True
            return self._whole_blocks(event.get("content"))
        elif kind == "content_block_start":
            return self._start(_index(event), event.get("content_block"))
        elif kind == "content_block_delta":
            return self._delta(_index(event), event.get("delta"))
        elif kind == "message_delta":
            self._message({**_object(event.get("delta")), "usage": event.get("usage")})
        elif kind == "message_stop":
            self.ended = True
        return ()

    def _message(self, message: Any) -> None:
        found = _object(message)
        if isinstance(found.get("id"), str):
            self._id = found["id"]
        if isinstance(found.get("model"), str):
            self._served_by = found["model"]
        if isinstance(found.get("stop_reason"), str):
            self._stop = found["stop_reason"]
        for name in _object(found.get("usage")):
            if count(found["usage"], name):
                self._counts[name] = count(found["usage"], name)

    def _whole_blocks(self, blocks: Any) -> Sequence[Delta]:
        found: list[Delta] = []
        for index, block in enumerate(cast("list[Any]", blocks) if isinstance(blocks, list) else []):
            found += self._start(index, block)
        return found

    def _start(self, index: int, block: Any) -> Sequence[Delta]:
        self._blocks[index] = dict(_object(block))
        first = self._blocks[index]
        self._written += len(str(first.get("name") or ""))
        return self._count(_deltas(first))

    def _delta(self, index: int, delta: Any) -> Sequence[Delta]:
        block, found = self._blocks.setdefault(index, {}), _object(delta)
        for name in ("text", "thinking", "signature", "partial_json"):
            if isinstance(found.get(name), str):
                self._pieces.setdefault((index, name), []).append(found[name])
        if not block:
            block["type"] = "thinking" if "thinking" in found else "text"  # its start did not come
        if isinstance(found.get("citation"), dict):
            block["citations"] = [*(block.get("citations") or []), found["citation"]]
        self._written += len(str(found.get("partial_json") or ""))
        return self._count(_deltas(found))

    def _count(self, deltas: list[Delta]) -> list[Delta]:
        self._written += sum(len(each.text.encode()) for each in deltas)
        return deltas

    def written(self) -> int:
        """Return the bytes of text, reasoning and calls so far."""
        return self._written

    def reply(self) -> Reply:
        """Return the reply as far as it came."""
        finish = _FINISH.get(self._stop, Finish.OTHER)
        blocks = [self._block(index) for index in sorted(self._blocks)]
        assembled = CallAssembly()
        uses = [block for block in blocks if block.get("type") == "tool_use"]
        for place, block in enumerate(uses):
            fragment = {"name": block.get("name"), "arguments": block.pop("raw")}
            assembled.feed([{"index": place, "id": block.get("id"), "function": fragment}])
        calls = assembled.finish(cut=finish is Finish.LENGTH and bool(uses) and blocks[-1] is uses[-1])
        for block, call in zip(uses, calls, strict=False):
            block |= {"id": call.id, "input": call.arguments, "name": call.name or "unknown"}
        text = "".join(block["text"] for block in blocks if block.get("type") == "text")
        kept = [block for block in blocks if block.get("type") != "text" or block["text"].strip()]
        if calls and finish in (Finish.STOP, Finish.OTHER):
            finish = Finish.CALLS
        content = [block for block in kept if block not in uses[len(calls) :]] or [
            {"type": "text", "text": NO_OUTPUT}
        ]
        message = {"role": "assistant", "content": content}
        return Reply(
            self._name,
            "messages",
            message,
            text,
            calls,
            finish,
            self._usage(),
            response_id=self._id,
            served_by=self._served_by,
        )

    def _block(self, index: int) -> dict[str, Any]:
        """Return a block with what its deltas added; of a call the arguments as text, as `raw`."""
        block = dict(self._blocks[index])
        for name in ("text", "thinking", "signature"):
            if name in block or (index, name) in self._pieces:
                block[name] = f"{block.get(name) or ''}{''.join(self._pieces.get((index, name), ()))}"
        if block.get("type") == "text":
            block.setdefault("text", "")
        if block.get("type") == "tool_use":
            pieces = self._pieces.get((index, "partial_json"))
            block["raw"] = "".join(pieces) if pieces else (block.get("input") or {})
        return block

    def _usage(self) -> TokenUsage:
        cached = self._counts.get("cache_read_input_tokens", 0)
        written = self._counts.get("cache_creation_input_tokens", 0)
        return TokenUsage(
            input=self._counts.get("input_tokens", 0) + cached + written,
            output=self._counts.get("output_tokens", 0),
            cached=cached,
            cache_written=written,
        )


def _deltas(found: dict[str, Any]) -> list[Delta]:
    """Return what a block or a delta adds to the text and to the reasoning."""
    text, thought = found.get("text"), found.get("thinking")
    deltas = [Delta("text", text)] if isinstance(text, str) and text else []
    return [*deltas, Delta("reasoning", thought)] if isinstance(thought, str) and thought else deltas


def _index(event: dict[str, Any]) -> int:
    index = event.get("index")
    return index if type(index) is int else 0


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
