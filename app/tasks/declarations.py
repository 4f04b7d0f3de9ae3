"""What a tasks.yaml may say: a type, its commands, their parameters. Checked when it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from app.errors import Unprocessable
from app.tasks.values import check_kind, check_value
from app.variables import check_env

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
PARAM = r"^[A-Za-z][A-Za-z0-9_-]{0,62}$"
FLAG = r"^(-[A-Za-z0-9]|--[A-Za-z0-9][A-Za-z0-9_.-]{0,62})$"
PLACE = re.compile(r"\$\{paths\.([A-Za-z][A-Za-z0-9_-]{0,62})\}")
"""Stands for a path of the project: `${paths.uploads}`."""

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
    """One parameter: what it takes, and how it stands in the argv."""

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
            raise ValueError(f"has {optional} in front of {name}: what may be left out stands last")
        optional = optional or ("" if always else name)
    return params


class Command(_Declaration):
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
    commands: dict[Annotated[str, Field(pattern=NAME)], Command] = Field(default_factory=dict[str, Command])
    cwd: Word | None = Field(None, min_length=1)
    env: dict[str, Word] = Field(default_factory=dict[str, str])
    image: str | None = Field(None, min_length=1)
    timeout_s: float | None = Field(None, gt=0, le=604_800, allow_inf_nan=False)

    def declared(self, command: str | None) -> Command:
        """Return the command with the parameters that all commands of the type share."""
        if command is None:
            return Command(help=self.help, params=self.params)
        own = self.commands[command]
        return Command(help=own.help, args=own.args, params={**own.params, **self.params})

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
