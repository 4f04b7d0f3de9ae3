"""The chat-completions dialect, which most servers speak, each a little differently.

Sent: one system message, never `developer`; nothing that many servers refuse (`strict`,
`tool_choice`, `parallel_tool_calls`) unless LLM_EXTRA_BODY asks for it; no empty text. Read: a chunk
without choices is metadata; `message` serves as `delta` (servers that ignore `stream`); the last
usage counts; unknown fields of the message are kept and echoed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from app.llm.calls import CallAssembly, echoed
from app.llm.dialect import Learned, count, parsed, verbatim
from app.llm.failures import ModelUnavailable, of_stream
from app.llm.model import NO_OUTPUT, Delta, Finish, ModelRequest, Reply, TokenUsage, ToolTurn, Turn, UserTurn
from app.llm.models_file import ModelConfig
from tailrun.sse import Frame

_FINISH = {
    "stop": Finish.STOP,
    "eos": Finish.STOP,
    "tool_calls": Finish.CALLS,
    "function_call": Finish.CALLS,
    "length": Finish.LENGTH,
    "max_tokens": Finish.LENGTH,
    "content_filter": Finish.REFUSED,
    "safety": Finish.REFUSED,
}
_FAILED = frozenset({"error", "network_error", "malformed_function_call", "abort", "aborted"})
"""Reasons to end that mean that the reply is none."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TAKEN = frozenset({"role", "content", "tool_calls", "function_call"})


class Chat:
    """Writes requests and begins answers."""

    path = "/chat/completions"

    def body(self, config: ModelConfig, request: ModelRequest, learned: Learned) -> dict[str, Any]:
        """Write a request; `config.extra_body` wins over all that is written here."""
        body: dict[str, Any] = {
            "model": config.model,
            "messages": _messages(config.name, request, learned),
            "stream": True,
        }
        if "stream_options" not in learned.dropped:
            body["stream_options"] = {"include_usage": True}
        given = config.max_tokens_field
        limit = request.max_output_tokens or config.max_output_tokens
        body[learned.limit_field if given == "auto" else given] = limit
        if request.temperature is not None and "temperature" not in learned.dropped:
            body["temperature"] = request.temperature
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.parameters,
                    },
                }
                for tool in request.tools
            ]
        return body | config.extra_body

    def assembly(self, name: str) -> ChatAssembly:
        """Begin an answer."""
        return ChatAssembly(name)


def _messages(name: str, request: ModelRequest, learned: Learned) -> list[dict[str, Any]]:
    head = [{"role": "system", "content": request.system}] if request.system.strip() else []
    return [*head, *(_message(name, turn, learned) for turn in request.turns)]


def _message(name: str, turn: Turn, learned: Learned) -> dict[str, Any]:
    if isinstance(turn, UserTurn):
        return {"role": "user", "content": turn.text or NO_OUTPUT}
    if isinstance(turn, ToolTurn):
        return {"role": "tool", "tool_call_id": turn.call_id, "content": turn.text or NO_OUTPUT}
    if verbatim(turn, name, "chat"):
        return {key: value for key, value in turn.message.items() if key not in learned.dropped}
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name or "unknown", "arguments": echoed(call)},
            }
            for call in turn.calls
        ]
    elif not turn.text:
        message["content"] = NO_OUTPUT
    return message


class ChatAssembly:
    """One answer on its way."""

    def __init__(self, name: str, calls: CallAssembly | None = None) -> None:
        self._name = name
        self._calls = calls or CallAssembly()
        self._text: list[str] = []
        self._parts: list[Any] = []
        """Content that came as a list of parts, kept as it is."""
        self._extra: dict[str, Any] = {}
        self._joined: dict[str, list[str]] = {}
        self._usage = TokenUsage()
        self._finish = ""
        self._id: str | None = None
        self._served_by: str | None = None
        self._written = 0
        self.ended = False

    @property
    def whole(self) -> bool:
        """Whether a finish reason came."""
        return bool(self._finish)

    def feed(self, frame: Frame) -> Sequence[Delta]:
        """Take one chunk."""
        if frame.data.strip() == "[DONE]":
            self.ended = True
            return ()
        chunk = parsed(frame)
        if chunk.get("error"):
            raise of_stream(chunk["error"])
        if frame.event == "error":
            raise of_stream(chunk)
        if isinstance(chunk.get("id"), str):
            self._id = self._id or chunk["id"] or None
        if isinstance(chunk.get("model"), str):
            self._served_by = chunk["model"] or self._served_by
        self._take_usage(chunk.get("usage"))
        if isinstance(chunk.get("x_groq"), dict):
            self._take_usage(chunk["x_groq"].get("usage"))
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return ()
        return self._choice(cast("dict[str, Any]", choices[0]))

    def _choice(self, choice: dict[str, Any]) -> Sequence[Delta]:
        if choice.get("error"):
            raise of_stream(choice["error"])
        self._take_usage(choice.get("usage"))
        delta = choice.get("delta") or choice.get("message")
        found = self._delta(cast("dict[str, Any]", delta)) if isinstance(delta, dict) else ()
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            if reason.lower() in _FAILED:
                raise ModelUnavailable(f"The model's server ended the reply with {reason!r}.")
            self._finish = reason
        return found

    def _delta(self, delta: dict[str, Any]) -> Sequence[Delta]:
        found: list[Delta] = []
        for name, value in delta.items():
            if name in _TAKEN or value is None:
                continue
            self._keep(name, value)
            if name in _REASONING and isinstance(value, str) and value and not found:
                found.append(Delta("reasoning", value))
        found += self._content(delta.get("content"))
        calls = delta.get("tool_calls")
        if isinstance(calls, list):
            self._calls.feed(calls)
            self._written += sum(len(str(each)) for each in calls)
        elif isinstance(delta.get("function_call"), dict):
            self._calls.feed([{"function": delta["function_call"]}])
        self._written += sum(len(each.text.encode()) for each in found)
        return found

    def _content(self, content: Any) -> list[Delta]:
        if isinstance(content, str):
            self._text += [content] if content else []
            return [Delta("text", content)] if content else []
        found: list[Delta] = []
        for part in cast("list[Any]", content) if isinstance(content, list) else []:
            self._parts.append(part)
            for each in _texts(part):
                found.append(each)
                self._text += [each.text] if each.kind == "text" else []
        return found

    def _keep(self, name: str, value: Any) -> None:
        """Keep a field that is none of ours: texts and lists grow, of the rest the last one counts."""
        if isinstance(value, str):
            self._joined.setdefault(name, []).append(value)
        elif isinstance(value, list) and isinstance(self._extra.get(name), list):
            self._extra[name] += value
        else:
            self._extra[name] = value

    def _take_usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        self._usage = TokenUsage(
            input=count(usage, "prompt_tokens"),
            output=count(usage, "completion_tokens"),
            cached=count(usage, "prompt_tokens_details", "cached_tokens")
            or count(usage, "prompt_cache_hit_tokens")
            or count(usage, "cached_tokens"),
            reasoning=count(usage, "completion_tokens_details", "reasoning_tokens"),
        )

    def written(self) -> int:
        """Return the bytes of text, reasoning and calls so far."""
        return self._written

    def reply(self) -> Reply:
        """Return the reply as far as it came."""
        finish = _FINISH.get(self._finish.lower(), Finish.OTHER)
        calls = self._calls.finish(cut=finish is Finish.LENGTH)
        text, refusal = "".join(self._text), "".join(self._joined.get("refusal", ()))
        message: dict[str, Any] = {"role": "assistant", "content": self._parts or text or None}
        if calls:
            message["tool_calls"] = self._calls.message(calls)
        elif message["content"] is None:
            message["content"] = NO_OUTPUT
        message |= {name: "".join(pieces) for name, pieces in self._joined.items() if any(pieces)}
        message |= {name: value for name, value in self._extra.items() if value not in ([], {})}
        if calls and finish in (Finish.STOP, Finish.OTHER):
            finish = Finish.CALLS
        return Reply(
            self._name,
            "chat",
            message,
            text or refusal,
            calls,
            Finish.REFUSED if refusal else finish,
            self._usage,
            response_id=self._id,
            served_by=self._served_by,
        )


def _texts(part: Any) -> list[Delta]:
    """Return the texts of a part of content: `{"type": "text" | "thinking", …}`."""
    if not isinstance(part, dict):
        return []
    kind, found = cast("str", part.get("type")), part.get("text") or part.get("thinking")
    if isinstance(found, list):
        found = "".join(str(each.get("text", "")) for each in found if isinstance(each, dict))
    if not isinstance(found, str) or not found:
        return []
    return [Delta("reasoning" if kind in ("thinking", "reasoning") else "text", found)]
