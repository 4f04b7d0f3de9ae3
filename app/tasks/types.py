"""Task types: programs with declared parameters, which a POST names instead of an argv.

    types.check("agent", "run", {"input": "…"}) ──> Task ──> execution.cli_builder.build ──> argv

The API checks a task here before its run exists, and the worker again before it starts, for the
two may read different files. `app.tasks.file` reads the declarations; defaults are filled in when
the argv is built, so that a run keeps what was sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from app.catalogue_errors import quote, similar
from app.errors import Unprocessable
from app.tasks.declarations import Command, Param, TaskType
from app.tasks.values import check_value

MAX_BYTES = 100_000
"""All texts of a task's parameters together; Linux takes little more in one argument."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task that was checked: what was declared, and what was asked for."""

    name: str
    type: TaskType
    command: str | None
    declared: Command
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TaskTypes:
    """Every task type that is declared, by name."""

    types: Mapping[str, TaskType]

    def params(self, name: str, command: str | None) -> Mapping[str, Param]:
        """Return the parameters that are declared; none of what does not exist."""
        found = self.types.get(name)
        if found is None or (command is not None and command not in found.commands):
            return {}
        return found.declared(command).params

    def check(self, name: str, command: str | None, params: Mapping[str, Any]) -> Task:
        """Check a task against what is declared.

        Raises:
            Unprocessable: code `unknown_type`, `unknown_command` or `invalid_params`; the message
                names what is wrong and what there is instead.
        """
        found = self.types.get(name)
        if found is None:
            raise _unknown("task type", name, self.types, "unknown_type")
        _check_command(name, found, command)
        declared = found.declared(command)
        where = f"{name} {command}" if command is not None else name
        _check_params(where, declared.params, params)
        return Task(name, found, command, declared, dict(params))


def _check_command(name: str, found: TaskType, command: str | None) -> None:
    if command is None and found.commands:
        names = ", ".join(found.commands)
        raise Unprocessable(f"command is required: task type {name!r} has {names}.", code="unknown_command")
    if command is not None and command not in found.commands:
        if not found.commands:
            raise Unprocessable(
                f"Task type {name!r} has no commands; leave out command.", code="unknown_command"
            )
        raise _unknown(f"command of {name!r}:", command, found.commands, "unknown_command")


def _check_params(where: str, declared: Mapping[str, Param], given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in declared:
            raise _unknown(f"parameter of {where}:", name, declared, "invalid_params")
    for name, param in declared.items():
        if given.get(name) is not None:
            try:
                check_value(param, name, given[name])
            except ValueError as error:
                raise _invalid(f"{where}: {name} {error}.") from None
        elif param.required:
            hint = f" ({param.help})" if param.help else ""
            raise _invalid(f"{where}: {name} is required{hint}.")
    size = sum(len(value.encode("utf-8", "replace")) for value in given.values() if isinstance(value, str))
    if size > MAX_BYTES:
        raise _invalid(f"{where}: the parameters are {size} bytes long in all; {MAX_BYTES} are the most.")


def _invalid(message: str) -> Unprocessable:
    return Unprocessable(message, code="invalid_params")


def _unknown(what: str, name: str, known: Iterable[str], code: str) -> Unprocessable:
    names = list(known)
    hint = similar(name, names).strip().capitalize()
    there = f"There are: {', '.join(names)}." if names else "None is declared."
    said = (f"Unknown {what} {quote(name)}.", hint, there)
    return Unprocessable(" ".join(filter(None, said)), code=code)
