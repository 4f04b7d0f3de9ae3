"""The words for what is wrong with a step: the field, the slip and what is allowed instead.

pydantic finds the slip; its own texts speak of inputs and instances, these speak of the
user's fields.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_SHOWN = 60


def quote(value: object) -> str:
    """Show a value of the user's within a message, shortened."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 2] + "…" + text[-1]


def kind_of(value: object) -> str:
    """Name a value's kind in the words of JSON and YAML."""
    if value is None:
        return "null"
    for kinds, name in _KINDS:
        if isinstance(value, kinds):
            return name
    return "something else"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a boolean"),
    ((int, float), "a number"),
    (str, "a string"),
    (list, "a list"),
    (dict, "an object"),
    (date, "a date"),
)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Put the most telling slip into one sentence, and say how many more there are.

    A field that doesn't exist comes first: it is often why another one is missing.
    """
    found = sorted(error.errors(include_url=False), key=lambda slip: slip["type"] != "extra_forbidden")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return _sentence(found[0], model) + more


def _sentence(slip: ErrorDetails, model: type[BaseModel]) -> str:
    if slip["type"] == "extra_forbidden":
        return _unknown_field(slip, model)
    words = _WORDS.get(slip["type"], lambda slip: slip["msg"])
    return f"{_field(slip['loc'])} {words(slip)}"


def _field(loc: tuple[int | str, ...]) -> str:
    first, *rest = loc
    return str(first) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)


def _unknown_field(slip: ErrorDetails, model: type[BaseModel]) -> str:
    *parents, name = slip["loc"]
    for parent in parents:
        inner = model.model_fields[str(parent)].annotation
        assert isinstance(inner, type)  # noqa: S101 - only models forbid fields
        assert issubclass(inner, BaseModel)  # noqa: S101
        model = inner
    close = get_close_matches(str(name), model.model_fields, 1)
    hint = f"did you mean {quote(close[0])}? " if close else ""
    allowed = ", ".join(model.model_fields)
    return f"{_field((*parents, str(name)[:_SHOWN]))} is not a field; {hint}allowed: {allowed}"


def _wrong_kind(expected: str) -> Callable[[ErrorDetails], str]:
    def words(slip: ErrorDetails) -> str:
        value = slip["input"]
        quotes = expected == "a string" and isinstance(value, (bool, int, float, date))
        hint = "; put it in quotes" if quotes else ""
        return f"must be {expected}, not {kind_of(value)}{hint}"

    return words


def _context(slip: ErrorDetails) -> dict[str, Any]:
    return slip.get("ctx", {})


def _one_of(slip: ErrorDetails) -> str:
    allowed = str(_context(slip)["expected"]).replace("'", "").replace(" or ", ", ")
    value = slip["input"]
    return f"must be one of {allowed}, not {quote(value) if isinstance(value, str) else kind_of(value)}"


def _no_float(slip: ErrorDetails) -> str:
    too_large = isinstance(slip["input"], int) and not isinstance(slip["input"], bool)
    return "is too large a number" if too_large else f"must be a number, not {kind_of(slip['input'])}"


_WORDS: dict[str, Callable[[ErrorDetails], str]] = {
    "missing": lambda _: "is required",
    "string_type": _wrong_kind("a string"),
    "string_unicode": lambda _: "must be valid Unicode",
    "string_too_short": lambda _: "must not be empty",
    "string_too_long": lambda slip: f"must be at most {_context(slip)['max_length']} characters long",
    "string_pattern_mismatch": lambda slip: (
        f"must be 1 to 32 letters, digits, _ or -, not {quote(slip['input'])}"
    ),
    "literal_error": _one_of,
    "list_type": _wrong_kind("a list"),
    "too_long": lambda slip: f"must hold at most {_context(slip)['max_length']} items",
    "model_type": _wrong_kind("an object"),
    "bool_type": _wrong_kind("true or false"),
    "float_type": _no_float,
    "greater_than": lambda slip: f"must be greater than {_context(slip)['gt']:g}, not {quote(slip['input'])}",
    "less_than_equal": lambda slip: f"must be at most {_context(slip)['le']:g}, not {quote(slip['input'])}",
    "finite_number": lambda _: "must be a finite number",
    "invalid_key": lambda _: "is not a field: names are strings",
    "value_error": lambda slip: str(_context(slip)["error"]),
}
