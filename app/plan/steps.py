"""The catalogue: every tool that a step may name, and the shape of its arguments.

The API checks a POST against it and publishes its models as OpenAPI; the planner checks
fenced prompts against it. So a plan that was accepted cannot fail later for a typing slip.
Messages for mistakes are made in `app.plan.explain`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from app.core.errors import Unprocessable
from app.core.models import ResourceRequest, Step
from app.core.names import MAX_PATH_BYTES, InvalidPath, normalise, normalise_prefix
from app.plan.explain import STEP_ID, explain, kind_of, quote, similar

MAX_STEPS = 100
MAX_SOURCE = 1_000_000
MAX_CONTENT = 5_000_000
MAX_PATH = MAX_PATH_BYTES
MAX_ARGUMENT = 100_000
"""Bytes of one program argument; Linux takes at most 131 071."""
MAX_TIMEOUT_S = 604_800
QUANTITY = r"^[0-9]{1,12}(\.[0-9]{1,9})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
"""A Kubernetes quantity, of those that make sense here."""
IMAGE = r"^[\w./:@-]+$"
"""The name of a container image."""


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _argument(value: str) -> str:
    if len(_text(value).encode()) > MAX_ARGUMENT:
        raise ValueError(f"must be at most {MAX_ARGUMENT} bytes long; put long programs into a code step")
    return value


def _prefix(value: str) -> str:
    return _named(normalise_prefix, value)


def _path(value: str) -> str:
    return _named(normalise, value)


def _named(rule: Callable[[str], str], value: str) -> str:
    """Hold a path to the storage's rules; what is stored stays as it was sent."""
    try:
        rule(value)
    except InvalidPath as error:
        raise ValueError(f"can't be {quote(value)}: {error.reason}") from error
    return value


Command = Annotated[str, Field(min_length=1, max_length=MAX_ARGUMENT), AfterValidator(_argument)]
Argument = Annotated[str, Field(max_length=MAX_ARGUMENT), AfterValidator(_argument)]
FilePath = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_PATH,
        description="Relative to the run's workspace, with `/`; no `..`.",
        examples=["report/summary.txt"],
    ),
    AfterValidator(_path),
]


class _Strict(BaseModel):
    """No unknown fields, no silent conversion: a typing slip is an answer, not a surprise."""

    model_config = ConfigDict(extra="forbid", strict=True)


class CodeArgs(_Strict):
    """Arguments of `code`."""

    language: Literal["python", "bash", "node"] = Field(description="Which interpreter runs it.")
    source: Annotated[str, AfterValidator(_text)] = Field(
        min_length=1,
        max_length=MAX_SOURCE,
        description="The whole program; it runs in the run's workspace.",
        examples=["print('hello')"],
    )
    args: list[Argument] = Field(
        default_factory=list[str],
        max_length=100,
        description="What the program finds as its arguments.",
    )


class ShellArgs(_Strict):
    """Arguments of `shell`."""

    command: Command = Field(
        description="A command line for bash (sh where there is no bash); it runs in the run's workspace.",
        examples=["ls -l"],
    )


class FileWriteArgs(_Strict):
    """Arguments of `file_write`."""

    path: FilePath
    encoding: Literal["utf-8", "base64"] = Field("utf-8", description="How `content` is written down.")
    content: str = Field(max_length=MAX_CONTENT, description="The file's whole content.")

    @field_validator("content")
    @classmethod
    def _decodable(cls, content: str, info: ValidationInfo) -> str:
        decode_content(content, info.data.get("encoding", "utf-8"))
        return content


class FileReadArgs(_Strict):
    """Arguments of `file_read`."""

    path: FilePath


class FileDeleteArgs(_Strict):
    """Arguments of `file_delete`."""

    path: FilePath


class FileListArgs(_Strict):
    """Arguments of `file_list`."""

    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        "",
        max_length=MAX_PATH,
        description="Only files whose path starts so; empty: all.",
    )


class _StepIn(_Strict):
    """What every step may have beside its tool and its arguments."""

    id: str | None = Field(
        None,
        pattern=STEP_ID,
        description="Name of the step within its run; `s1`, `s2` … if left out.",
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        le=MAX_TIMEOUT_S,
        allow_inf_nan=False,
        description="Seconds after which the step is stopped; left out: only the run's own limit holds.",
    )
    continue_on_error: bool = Field(default=False, description="Whether the run continues if the step fails.")


Quantity = Annotated[str, Field(max_length=32, pattern=QUANTITY)]


class _ProgramStep(_StepIn):
    """What a step may have that runs a program; only where programs run as Kubernetes Jobs."""

    image: str | None = Field(
        None,
        min_length=1,
        max_length=500,
        pattern=IMAGE,
        description="The container image, one of those that the deployment allows (Kubernetes only).",
        examples=["python:3.13-slim"],
    )
    cpu: Quantity | None = Field(None, description="CPUs, such as `500m` or `2` (Kubernetes only).")
    memory: Quantity | None = Field(None, description="Memory, such as `512Mi` (Kubernetes only).")
    network: Literal["none", "internet"] | None = Field(
        None, description="Where the network leads (Kubernetes only)."
    )

    def wants(self) -> ResourceRequest:
        return ResourceRequest(self.image, self.cpu, self.memory, self.network)


class CodeStep(_ProgramStep):
    """Run a program that is given as source text."""

    tool: Literal["code"]
    args: CodeArgs


class ShellStep(_ProgramStep):
    """Run a command line."""

    tool: Literal["shell"]
    args: ShellArgs


class FileWriteStep(_StepIn):
    """Write a file into the workspace."""

    tool: Literal["file_write"]
    args: FileWriteArgs


class FileReadStep(_StepIn):
    """Print a file of the workspace into the log."""

    tool: Literal["file_read"]
    args: FileReadArgs


class FileDeleteStep(_StepIn):
    """Remove a file from the workspace."""

    tool: Literal["file_delete"]
    args: FileDeleteArgs


class FileListStep(_StepIn):
    """Print the names and sizes of the workspace's files into the log."""

    tool: Literal["file_list"]
    args: FileListArgs = FileListArgs(prefix="")


StepIn = Annotated[
    CodeStep | ShellStep | FileWriteStep | FileReadStep | FileDeleteStep | FileListStep,
    Field(discriminator="tool"),
]
"""One step as it is POSTed; the shape that OpenAPI shows."""

TOOLS: Mapping[str, type[_StepIn]] = {
    "code": CodeStep,
    "shell": ShellStep,
    "file_write": FileWriteStep,
    "file_read": FileReadStep,
    "file_delete": FileDeleteStep,
    "file_list": FileListStep,
}
"""Every tool that a step may name."""

ARGV = "argv"
"""The tool behind a run of kind `argv`; no step may name it."""

TASK = "task"
"""The tool behind a run of kind `task`; no step may name it."""

_MEANT = {"bash": "shell", "sh": "shell", "python": "code", "node": "code"}


def decode_content(content: str, encoding: str) -> bytes:
    """Return the bytes that a `file_write` step holds; ValueError if they are none."""
    if encoding == "base64":
        try:
            return base64.b64decode("".join(content.split()), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("is not valid base64") from None
    return content.encode()


def argv_step(argv: Sequence[str]) -> Step:
    """Make the one step of a run of kind `argv`."""
    return Step(id="s1", tool=ARGV, args={"argv": list(argv)})


def parse_steps(raw: Any) -> list[Step]:
    """Check the steps of a plan and give every one an id.

    Raises:
        Unprocessable: code `invalid_steps`; the message names the step (from 1), the field,
            what is wrong with it and what is allowed.
    """
    steps: list[Step] = []
    for number, item in enumerate(_items(raw), 1):
        step = _parse(number, item)
        for other, earlier in enumerate(steps, 1):
            if earlier.id == step.id:
                raise _invalid(
                    f"step {number}: id {quote(step.id)} is already the id of step {other}; "
                    "a step without an id is named s and its number",
                )
        steps.append(step)
    return steps


def _invalid(message: str) -> Unprocessable:
    return Unprocessable(message, code="invalid_steps")


def _items(raw: Any) -> list[Any]:
    if not isinstance(raw, list):
        raise _invalid(f"steps must be a list of 1 to {MAX_STEPS} steps, not {kind_of(raw)}")
    items = cast("list[Any]", raw)
    if not 1 <= len(items) <= MAX_STEPS:
        raise _invalid(f"steps must hold 1 to {MAX_STEPS} steps, not {len(items)}")
    return items


def _parse(number: int, item: Any) -> Step:
    if not isinstance(item, dict):
        example = '{"tool": "shell", "args": {"command": "ls"}}'
        raise _invalid(f"step {number} must be an object like {example}, not {kind_of(item)}")
    tool = _tool(number, cast("dict[Any, Any]", item))
    model = TOOLS[tool]
    try:
        step = model.model_validate(item)
    except ValidationError as error:
        raise _invalid(f"step {number} ({tool}): {explain(error, model)}") from None
    args = cast("dict[str, Any]", step.model_dump()["args"])
    wants = step.wants() if isinstance(step, _ProgramStep) else ResourceRequest()
    return Step(step.id or f"s{number}", tool, args, step.timeout_s, step.continue_on_error, wants)


def _tool(number: int, item: dict[Any, Any]) -> str:
    names = ", ".join(TOOLS)
    if "tool" not in item:
        raise _invalid(f"step {number}: tool is required; one of {names}")
    tool = item["tool"]
    if not isinstance(tool, str):
        raise _invalid(f"step {number}: tool must be a string, not {kind_of(tool)}; one of {names}")
    if tool not in TOOLS:
        hint = f"did you mean {quote(_MEANT[tool])}? " if tool in _MEANT else similar(tool, TOOLS)
        raise _invalid(f"step {number}: unknown tool {quote(tool)}; {hint}tools: {names}")
    return tool
