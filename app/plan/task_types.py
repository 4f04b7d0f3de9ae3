"""Task types: programs with declared parameters, which a POST names instead of an argv.

    types.check("agent", "run", {"input": "…"}) ──> TaskCall ──> execution.cli_builder.build ──> argv

The API checks a task here before its run exists, and the worker again before it starts, for the
two may read different files. `app.plan.task_types` reads the declarations; defaults are filled in when
the argv is built, so that a run keeps what was sent.

Reads a tasks.yaml: every mistake with its line, all of them at once, before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from app.core.errors import Unprocessable
from app.plan.explain import quote, similar, slips
from app.plan.task_values import CommandType, Param, TaskFile, TaskType, check_value

MAX_BYTES = 100_000
"""All texts of a task's parameters together; Linux takes little more in one argument."""


@dataclass(frozen=True, slots=True)
class TaskCall:
    """A task that was checked: what was declared, and what was asked for."""

    name: str
    type: TaskType
    command: str | None
    declared: CommandType
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

    def check(self, name: str, command: str | None, params: Mapping[str, Any]) -> TaskCall:
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
        return TaskCall(name, found, command, declared, dict(params))


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
    parts = (f"Unknown {what} {quote(name)}.", hint, there)
    return Unprocessable(" ".join(filter(None, parts)), code=code)


_APP = Path(__file__).parent.parent
SHIPPED = _APP / "plan" / "shipped.yaml"
"""What is declared as long as `TASKS_FILE` is unset: the example of examples/agent-cli."""

_EXAMPLES = (_APP / "agent_cli", _APP.parent / "examples" / "agent-cli")
"""Where the example's program is: within an installed wheel, or in a clone."""
_MAX_DEPTH = 20

Place = tuple[int | str, ...]


class BadTasksFile(Exception):
    """A tasks.yaml can't be used; `problems` holds a line `file:line: what` for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path | None) -> TaskTypes:
    """Read the declarations; None: the shipped ones. A relative `cwd` begins at the file's folder.

    Raises:
        BadTasksFile: it can't be read, is no YAML, or declares something that can't be.
    """
    if path is None:
        return read(SHIPPED, next((folder for folder in _EXAMPLES if folder.is_dir()), _EXAMPLES[-1]))
    return read(path, path.resolve().parent)


def read(path: Path, base: Path) -> TaskTypes:
    """Read a file whose relative `cwd`s begin at `base`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadTasksFile([f"{path}: can't be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise BadTasksFile([f"{path}: is not UTF-8: {error.reason} at byte {error.start}"]) from error
    content, lines = _Document(path).parse(text)
    try:
        declared = TaskFile.model_validate(content)
    except ValidationError as error:
        found = sorted((_line(lines, place), words) for place, words in slips(error, TaskFile))
        raise BadTasksFile([f"{path}:{line}: {words}" for line, words in found]) from None
    return TaskTypes({name: _placed(task, base) for name, task in declared.types.items()})


def _placed(task: TaskType, base: Path) -> TaskType:
    if task.cwd is None or task.cwd.startswith(("/", "${")):
        return task
    return task.model_copy(update={"cwd": str((base / task.cwd).resolve())})


def _line(lines: dict[Place, int], place: Place) -> int:
    """Return the line of a place, or of the nearest one around it that the file has."""
    while place not in lines and place:
        place = place[:-1]
    return lines.get(place, 1)


class _Document:
    """One YAML document as plain data, and the line of each of its values."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[Place, int] = {(): 1}
        self._problems: list[str] = []

    def parse(self, text: str) -> tuple[Any, dict[Place, int]]:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise BadTasksFile([f"{self._path}:1: is empty; it begins with `types:`"])
            self._walk(loader, node, ())
            content: Any = None if self._problems else loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise BadTasksFile([f"{self._path}:{line}: is not YAML: {error.problem or error}"]) from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise BadTasksFile([f"{self._path}: is not YAML: {error}"]) from None
        finally:
            loader.dispose()
        if self._problems:
            raise BadTasksFile(self._problems)
        return content, self._lines

    def _walk(self, loader: Any, node: yaml.Node, place: Place) -> None:
        if len(place) > _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode):
            self._refuse_doubles(node)
            loader.flatten_mapping(node)  # `<<: *shared`
        for name, key, value in _children(node):
            self._lines[*place, name] = key.start_mark.line + 1
            self._walk(loader, value, (*place, name))

    def _refuse_doubles(self, node: yaml.MappingNode) -> None:
        """Report keys that occur twice: YAML's loader takes the last one without a message."""
        seen: dict[str, int] = {}
        for key, _ in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            line, name = key.start_mark.line + 1, str(key.value)
            if name in seen and name != "<<":
                self._problems.append(
                    f"{self._path}:{line}: {name} is repeated here, after line {seen[name]}"
                )
            seen[name] = line


def _children(node: yaml.Node) -> Iterator[tuple[int | str, yaml.Node, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            yield str(key.value), key, value
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(cast("list[yaml.Node]", node.value)):
            yield number, value, value
