"""The value of one parameter: is it what was declared, and is it safe in an argv?

A value can't become an option: after a long flag one that begins with `-` is joined to it
(`--main-tab=-x`), which every common parser reads as a value. Where there is nothing to join it
to, at a position or behind a short flag, it is refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from app.catalogue_errors import kind_of, quote
from app.paths import InvalidPath, normalise

if TYPE_CHECKING:
    from app.tasks.declarations import Param

_KINDS = {
    "string": "a string",
    "file": "the path of a file, as a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


def check_kind(kind: str, value: Any) -> None:
    """Hold a value to its type; ValueError says what it must be."""
    match kind:
        case "boolean":
            right = isinstance(value, bool)
        case "integer":
            right = isinstance(value, int) and not isinstance(value, bool)
        case "number":
            right = isinstance(value, (int, float)) and not isinstance(value, bool)
            right = right and math.isfinite(value)
        case _:
            right = isinstance(value, str)
    if not right:
        raise ValueError(f"must be {_KINDS[kind]}, not {kind_of(value)}")


def check_value(param: Param, name: str, value: Any) -> None:
    """Hold a value to its declaration; ValueError says what is allowed."""
    check_kind(param.type, value)
    if isinstance(value, str):
        _check_text(value)
    if param.type == "file":
        _check_file(value)
    if param.choices is not None and value not in param.choices:
        raise ValueError(f"must be one of {', '.join(map(text_of, param.choices))}, not {quote(value)}")
    _check_range(param, value)
    if param.type not in {"boolean", "file"} and text_of(value).startswith("-"):
        _check_dash(param, name, value)


def text_of(value: Any) -> str:
    """Write a value as it stands in an argv."""
    return value if isinstance(value, str) else str(value)


def is_workspace_path(path: str) -> bool:
    """Whether the path names a file of the run; absolute ones name files where the program runs."""
    return not path.startswith("/")


def _check_range(param: Param, value: Any) -> None:
    if param.min is not None and value < param.min:
        raise ValueError(f"must be at least {param.min:g}, not {quote(value)}")
    if param.max is not None and value > param.max:
        raise ValueError(f"must be at most {param.max:g}, not {quote(value)}")


def _check_text(value: str) -> None:
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode") from None


def _check_file(path: str) -> None:
    if not is_workspace_path(path):
        return
    try:
        normalise(path)
    except InvalidPath as error:
        raise ValueError(
            f"can't be {quote(path)}: {error.reason}; name a file of the run, or give an absolute path"
        ) from error


def _check_dash(param: Param, name: str, value: Any) -> None:
    if param.position is not None:
        raise ValueError(f"must not begin with '-', or the program takes it for an option: {quote(value)}")
    if not param.flag_of(name).startswith("--"):
        raise ValueError(f"must not begin with '-' behind the short flag {param.flag}: {quote(value)}")
