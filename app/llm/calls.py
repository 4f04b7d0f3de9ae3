"""Tool calls put together from their fragments, as leniently as servers are different.

A fragment belongs to a call by its id, else by its index, else by its position. What is seen:
ids only in the first fragment, or in each; no index (Gemini's compatible endpoint); several calls
under one index; an id that is new in each fragment; the name repeated with each fragment; no id at
all, or one twice; arguments as an object. Unknown fields of a fragment stay with the call, since
some servers want them back (thought signatures).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from app.llm.model import ToolCall

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_ID_LENGTH = 9
_MOST_CALLS = 128
"""More in one reply is a server or a model that repeats itself; the rest is dropped, and said so."""


def new_id() -> str:
    """Make an id for a call that came without one; Mistral takes exactly this shape, the others any."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH))


@dataclass(slots=True)
class _Draft:
    index: int | None
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list[str])
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    function_extra: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def raw(self) -> str:
        return "".join(self.pieces)

    @property
    def whole(self) -> bool:
        """Whether its arguments are a whole object already."""
        ends = bool(self.pieces) and self.pieces[-1].rstrip().endswith("}")
        return ends and not isinstance(read(self.raw), str)


class CallAssembly:
    """The calls of one reply; `make_id` gives those without an id one."""

    def __init__(self, make_id: Callable[[], str] = new_id) -> None:
        self._drafts: list[_Draft] = []
        self._make_id = make_id
        self.dropped = 0

    def __bool__(self) -> bool:
        """Whether there is any call yet."""
        return bool(self._drafts)

    def feed(self, fragments: Iterable[Any]) -> None:
        """Take the fragments of one chunk."""
        for position, each in enumerate(fragments):
            if isinstance(each, dict):
                self._take(position, cast("dict[str, Any]", each))

    def _take(self, position: int, fragment: dict[str, Any]) -> None:
        given: Any = fragment.get("function")
        function = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
        index, id_ = fragment.get("index"), fragment.get("id")
        name, arguments = _text(function.get("name")), function.get("arguments")
        draft = self._find(
            position,
            index if type(index) is int else None,
            _text(id_),
            name,
            alone=arguments in (None, ""),
        )
        if draft is None:
            self.dropped += 1
            return
        draft.id = draft.id or _text(id_)
        if name and name != draft.name:
            draft.name += name
        if isinstance(arguments, str):
            draft.pieces.append(arguments)
        elif isinstance(arguments, dict):
            draft.pieces.append(orjson.dumps(arguments).decode())
        draft.extra |= _unknown(fragment, {"index", "id", "type", "function"})
        draft.function_extra |= _unknown(function, {"name", "arguments"})

    def _find(self, position: int, index: int | None, id_: str, name: str, *, alone: bool) -> _Draft | None:
        """Return the call that a fragment belongs to or begins; None: there are too many."""
        if id_:
            same = [each for each in self._drafts if each.id == id_]
            known = next((each for each in same if each.index == index), same[0] if same else None)
            if known is not None and not (name and known.index != index and known.whole):
                return known
        at = self._at(position, index)
        if at is not None and _continues(at, id_, name, alone=alone):
            return at
        if len(self._drafts) >= _MOST_CALLS:
            return None
        self._drafts.append(_Draft(index))
        return self._drafts[-1]

    def _at(self, position: int, index: int | None) -> _Draft | None:
        """Return the newest call of this index; without an index the newest one, for the first position."""
        if index is not None:
            return next((each for each in reversed(self._drafts) if each.index == index), None)
        return self._drafts[-1] if self._drafts and position == 0 else None

    def finish(self, *, cut: bool) -> tuple[ToolCall, ...]:
        """Return the calls; `cut`: the reply ended at its limit, so the last one is not to be trusted."""
        found: list[ToolCall] = []
        taken: set[str] = set()
        for place, draft in enumerate(self._drafts):
            if not draft.id or draft.id in taken:
                draft.id = self._make_id()
            taken.add(draft.id)
            arguments = read(draft.raw)
            problem = arguments if isinstance(arguments, str) else ""
            if not draft.name:
                problem = "The call names no tool."
            if cut and place == len(self._drafts) - 1:
                problem = f"The reply was cut at its length limit, within this call. {problem}".rstrip()
            known = arguments if isinstance(arguments, dict) else {}
            found.append(ToolCall(draft.id, draft.name, draft.raw, known, problem))
        return tuple(found)

    def message(self, calls: tuple[ToolCall, ...]) -> list[dict[str, Any]]:
        """Return the finished calls as chat completions has them in a message, broken arguments as `{}`."""
        return [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name or "unknown",
                    "arguments": echoed(call),
                    **draft.function_extra,
                },
                **draft.extra,
            }
            for call, draft in zip(calls, self._drafts, strict=True)
        ]


def read(raw: str) -> dict[str, Any] | str:
    """Read arguments: the object, or what is wrong with them. None at all are the empty object."""
    if not raw.strip():
        return {}
    try:
        found: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return f"The arguments are no JSON: {error.msg} at character {error.pos}."
    if not isinstance(found, dict):
        return "The arguments are JSON, but no object."
    return cast("dict[str, Any]", found)


def echoed(call: ToolCall) -> str:
    """Return the arguments for the conversation: as they came, or `{}` where a server could not read them."""
    return call.raw if call.raw.strip() and not isinstance(read(call.raw), str) else "{}"


def _continues(at: _Draft, id_: str, name: str, *, alone: bool) -> bool:
    """Whether a fragment that is not known by its id continues the call at its place."""
    if not name:
        return True  # also with a new id: a call begins with a name
    if not at.name:
        return not at.id or not id_
    if id_ and at.id:
        return False
    if not at.pieces and alone:
        return True  # the name itself comes in pieces
    return name == at.name and not at.whole


def _unknown(found: dict[str, Any], known: set[str]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in known and value is not None}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
