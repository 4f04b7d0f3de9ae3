"""The words for what is wrong with a step or a body: the field, the slip, what is allowed instead.

pydantic finds the slip; its own texts speak of inputs and instances, these speak of the
user's fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from difflib import get_close_matches
from typing import Any, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

STEP_ID = r"^[A-Za-z0-9_-]{1,32}$"

_SHOWN = 60
_MAX_BITS = 128  # Python refuses to print numbers of thousands of digits


def quote(value: object) -> str:
    """Show a value of the user's within a message, shortened."""
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return "a number that long"
    if isinstance(value, (list, dict)):
        return kind_of(cast("object", value))
    text = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 2] + "…" + text[-1]


def similar(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'? `, or nothing: the search is slow, and for short names alone."""
    close = get_close_matches(name, known, 1) if len(name) <= _SHOWN else []
    return f"did you mean {quote(close[0])}? " if close else ""


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
    """Describe the most specific mistake in one sentence, with the number of further ones.

    A field that doesn't exist comes first: it is often why another one is missing.
    """
    found = sorted(error.errors(include_url=False), key=lambda slip: slip["type"] != "extra_forbidden")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return _sentence(found[0], model) + more


def slips(error: ValidationError, model: type[BaseModel]) -> list[tuple[tuple[int | str, ...], str]]:
    """Return every slip: where it is, and a sentence on it."""
    found = error.errors(include_url=False)
    return [(slip["loc"], _sentence(slip, model).replace(".[key]", "", 1)) for slip in found]


def _sentence(slip: ErrorDetails, model: type[BaseModel]) -> str:
    if slip["type"] == "extra_forbidden":
        return _unknown_field(slip, model)
    words = _WORDS.get(slip["type"], _pydantics_own)
    return f"{_field(slip['loc'])} {words(slip)}"


def _pydantics_own(slip: ErrorDetails) -> str:
    return f"is not valid: {slip['msg']}"


def _field(loc: tuple[int | str, ...]) -> str:
    if not loc:
        return "the body"
    first, *rest = loc
    return str(first)[:_SHOWN] + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part[:_SHOWN]}" for part in rest
    )


def _unknown_field(slip: ErrorDetails, model: type[BaseModel]) -> str:
    *parents, name = slip["loc"]
    unknown = f"{_field((*parents, str(name)[:_SHOWN]))} is not a field"
    owner = _owner(model, parents)
    if owner is None:
        return unknown
    hint = similar(str(name), owner.model_fields)
    return f"{unknown}; {hint}allowed: {', '.join(owner.model_fields)}"


def _owner(model: type[BaseModel], parents: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model in which `parents` ends; None where the way leads through lists or unions."""
    way = iter(parents)
    for parent in way:
        field = model.model_fields.get(str(parent))
        inner = field.annotation if field else None
        if get_origin(inner) is dict and next(way, None) is not None:
            inner = get_args(inner)[1]
        if not isinstance(inner, type) or not issubclass(inner, BaseModel):
            return None
        model = inner
    return model


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


def _too_short(slip: ErrorDetails) -> str:
    least = _context(slip)["min_length"]
    return "must not be empty" if least == 1 else f"must be at least {least} long"


def _pattern(slip: ErrorDetails) -> str:
    pattern = _context(slip)["pattern"]
    form = "be 1 to 32 letters, digits, _ or -" if pattern == STEP_ID else f"match {pattern}"
    return f"must {form}, not {quote(slip['input'])}"


def _no_float(slip: ErrorDetails) -> str:
    too_large = isinstance(slip["input"], int) and not isinstance(slip["input"], bool)
    return "is too large a number" if too_large else f"must be a number, not {kind_of(slip['input'])}"


_WORDS: dict[str, Callable[[ErrorDetails], str]] = {
    "missing": lambda _: "is required",
    "string_type": _wrong_kind("a string"),
    "string_unicode": lambda _: "must be valid Unicode",
    "string_too_short": _too_short,
    "too_short": _too_short,
    "string_too_long": lambda slip: f"must be at most {_context(slip)['max_length']} characters long",
    "string_pattern_mismatch": _pattern,
    "literal_error": _one_of,
    "list_type": _wrong_kind("a list"),
    "too_long": lambda slip: f"must hold at most {_context(slip)['max_length']} items",
    "model_type": _wrong_kind("an object"),
    "dict_type": _wrong_kind("an object"),
    "int_type": _wrong_kind("a whole number"),
    "bool_type": _wrong_kind("true or false"),
    "float_type": _no_float,
    "greater_than": lambda slip: f"must be greater than {_context(slip)['gt']:g}, not {quote(slip['input'])}",
    "greater_than_equal": lambda slip: (
        f"must be at least {_context(slip)['ge']:g}, not {quote(slip['input'])}"
    ),
    "less_than_equal": lambda slip: f"must be at most {_context(slip)['le']:g}, not {quote(slip['input'])}",
    "finite_number": lambda _: "must be a finite number",
    "invalid_key": lambda _: "is not a field: names are strings",
    "value_error": lambda slip: str(_context(slip)["error"]),
}
