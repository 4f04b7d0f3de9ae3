"""The value of one parameter: is it what was declared, and is it safe in an argv?

A value can't become an option: after a long flag one that begins with `-` is joined to it
(`--main-tab=-x`), which every common parser reads as a value. Where there is nothing to join it
to, at a position or behind a short flag, it is refused.

What a tasks.yaml may contain: a type, its commands, their parameters. Checked when it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from app.core.errors import Unprocessable
from app.core.names import InvalidPath, check_env, normalise
from app.plan.explain import kind_of, quote

_KINDS = {
    "string": "a string",
    "file": "the path of a file, as a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


def check_kind(kind: str, value: Any) -> None:
    """Check a value against its type; ValueError names what it must be."""
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
    """Check a value against its declaration; ValueError names what is allowed."""
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
    """Return a value as a word of an argv."""
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


NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
PARAM = r"^[A-Za-z][A-Za-z0-9_-]{0,62}$"
FLAG = r"^(-[A-Za-z0-9]|--[A-Za-z0-9][A-Za-z0-9_.-]{0,62})$"
PLACE = re.compile(r"\$\{paths\.([A-Za-z][A-Za-z0-9_-]{0,62})\}")
"""A reference to a path of the project: `${paths.uploads}`."""

Kind = Literal["string", "integer", "number", "boolean", "file"]
_NUMBERS = frozenset({"integer", "number"})


def _word(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    if "${" in PLACE.sub("", value):
        raise ValueError("may hold ${paths.NAME} for a path of the project, and no other ${…}")
    return value


Word = Annotated[str, AfterValidator(_word)]


class _Declaration(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Param(_Declaration):
    """One parameter: what it takes, and its place in the argv."""

    type: Kind = "string"
    help: str = ""
    required: bool = False
    default: Any = None
    flag: str | None = Field(None, pattern=FLAG)
    position: int | None = Field(None, ge=1)
    choices: list[Any] | None = Field(None, min_length=1)
    min: float | None = Field(None, allow_inf_nan=False)
    max: float | None = Field(None, allow_inf_nan=False)

    def flag_of(self, name: str) -> str:
        """Return the flag before the value: the one that is declared, or `--` and the name."""
        return self.flag or "--" + name.replace("_", "-")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.position is not None and (self.flag is not None or self.type == "boolean"):
            raise ValueError("takes a position or a flag, not both; a boolean is a flag")
        if self.type == "boolean" and self.choices is not None:
            raise ValueError("is a boolean, which needs no choices")
        if self.type not in _NUMBERS and (self.min is not None or self.max is not None):
            raise ValueError("takes min and max only if it is an integer or a number")
        for choice in self.choices or ():
            _named("choices", choice, self)
        if self.default is not None:
            if self.required:
                raise ValueError("is required, so its default would never count; give one of the two")
            _named("default", self.default, self)
        return self


def _named(what: str, value: Any, param: Param) -> None:
    try:
        if what == "choices":
            check_kind(param.type, value)
        else:
            check_value(param, "", PLACE.sub("p", value) if isinstance(value, str) else value)
    except ValueError as error:
        raise ValueError(f"{what} {error}") from None


Params = dict[Annotated[str, Field(pattern=PARAM)], Param]


def _positions(params: Params) -> Params:
    """Hold positions to 1, 2, 3 …, the ones that may be left out last."""
    placed = sorted((param.position, name) for name, param in params.items() if param.position is not None)
    if [position for position, _ in placed] != list(range(1, len(placed) + 1)):
        raise ValueError("must have the positions 1, 2, 3 … once each")
    optional = ""
    for _, name in placed:
        always = params[name].required or params[name].default is not None
        if always and optional:
            raise ValueError(f"has {optional} in front of {name}: what may be left out comes last")
        optional = optional or ("" if always else name)
    return params


class CommandType(_Declaration):
    """A command of a type. `args`: the words that name it in the argv; left out: its name."""

    help: str = ""
    args: list[Word] | None = None
    params: Annotated[Params, AfterValidator(_positions)] = Field(default_factory=dict[str, Param])


class TaskType(_Declaration):
    """A program and what may be asked of it.

    `cwd`: the folder in which it runs, on the worker or in `image`; left out: the run's files.
    `timeout_s`: seconds that it may take; the run's own limit holds as well.
    """

    help: str = ""
    program: list[Word] = Field(min_length=1)
    args: list[Word] | None = None
    params: Annotated[Params, AfterValidator(_positions)] = Field(default_factory=dict[str, Param])
    commands: dict[Annotated[str, Field(pattern=NAME)], CommandType] = Field(
        default_factory=dict[str, CommandType]
    )
    cwd: Word | None = Field(None, min_length=1)
    env: dict[str, Word] = Field(default_factory=dict[str, str])
    image: str | None = Field(None, min_length=1)
    timeout_s: float | None = Field(None, gt=0, le=604_800, allow_inf_nan=False)

    def declared(self, command: str | None) -> CommandType:
        """Return the command with the parameters that all commands of the type share."""
        if command is None:
            return CommandType(help=self.help, params=self.params)
        own = self.commands[command]
        return CommandType(help=own.help, args=own.args, params={**own.params, **self.params})

    @field_validator("env")
    @classmethod
    def _variables(cls, env: Mapping[str, str]) -> Mapping[str, str]:
        try:
            check_env(env)
        except Unprocessable as error:
            raise ValueError(f"can't be set: {error.message}") from error
        return env

    @model_validator(mode="after")
    def _no_clash(self) -> Self:
        for name, command in self.commands.items():
            shared = sorted(self.params.keys() & command.params.keys())
            if shared:
                raise ValueError(f"declares {shared[0]} for all commands and again for {name}")
            self.declared(name)
        return self


class TaskFile(_Declaration):
    """A whole tasks.yaml."""

    types: dict[Annotated[str, Field(pattern=NAME)], TaskType]
