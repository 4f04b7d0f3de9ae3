"""Plans inside prompts: fenced ```yaml and ```json blocks, read without trusting them.

YAML can be small and mean something huge (aliases), deep (nesting) or other than data
(tags): all three are refused before anything is built from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import yaml

from tailrun.process.errors import ErrorCode, RunFailure

MAX_BLOCK = 256 * 1024
"""Characters of one block."""
MAX_VALUES = 10_000
"""Values of one YAML block: reading so many takes a fraction of a second, in which other runs wait."""
MAX_BLOCKS = 10
SMOKE = "smoke"
"""The planner of a prompt without steps, for those who ask for it."""
AGENT = "agent"
"""The planner of a prompt that a language model carries out."""
NO_MODEL = (
    "No model carries out a prompt here: send steps, an argv or a typed task, put the steps into the prompt "
    'as a ```yaml block, or ask for "planner": "smoke" (files, shell and logs at work, and not the prompt). '
    "Whoever runs this server gives it a model with LLM_MODEL (docs/agent.md)."
)

_MAX_DEPTH = 20
_OPEN = re.compile(r" {0,3}(?P<fence>`{3,}+|~{3,}+)\s*(?P<language>yaml|yml|json)\b[^`]*", re.IGNORECASE)
_ANY_OPEN = re.compile(r" {0,3}(?P<fence>`{3,}+|~{3,}+)[^`]*")
_LONG_NUMBER = re.compile(r"[-+]?[0-9][0-9_:.]{100,}", re.ASCII)
"""Reading one takes time that grows faster than it does: YAML has numbers to the base of 60 (`1:30:00`)."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotAPlan(Exception):
    """The block is fine, but holds something other than steps."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """A block of a prompt; `line` is the line of its fence, counted from 1."""

    language: str
    line: int
    text: str

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"```{self.language} block at line {self.line} of the prompt"


def fenced_blocks(prompt: str) -> Iterator[Fenced]:
    """Yield the yaml and json blocks in order; an unclosed one reaches to the end, as in Markdown."""
    lines = prompt.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    at = 0
    while at < len(lines):
        opened = _ANY_OPEN.fullmatch(lines[at])
        if opened is None:
            at += 1
            continue
        end = _closing(lines, at + 1, opened["fence"])
        if ours := _OPEN.fullmatch(lines[at]):
            language = "json" if ours["language"].lower() == "json" else "yaml"
            yield Fenced(language, at + 1, "".join(f"{line}\n" for line in lines[at + 1 : end]))
        at = end + 1


def is_bare(prompt: str) -> bool:
    """Whether a prompt holds no block that could be a plan."""
    return next(fenced_blocks(prompt), None) is None


def _closing(lines: list[str], start: int, fence: str) -> int:
    for at in range(start, len(lines)):
        line = lines[at].strip()
        if len(line) >= len(fence) and set(line) == {fence[0]}:
            return at
    return len(lines)


def read_block(block: Fenced) -> Any:
    """Return the raw steps that a block holds, as a list or below `steps`.

    Raises:
        NotAPlan: it holds no list of objects.
        RunFailure: INVALID_PLAN: it can't be parsed; the message has the line.
    """
    if len(block.text) > MAX_BLOCK:
        raise _invalid(f"{block.name}: longer than {MAX_BLOCK} characters; send long plans as `steps`")
    content: Any = _json(block) if block.language == "json" else _yaml(block)
    match content:
        case {"steps": steps, **rest}:
            if rest:
                raise _invalid(f"{block.name}: beside steps, nothing else is allowed: {_names(rest)}")
            return steps
        case list() if any(isinstance(item, dict) for item in cast("list[Any]", content)):
            return content
        case _:
            raise NotAPlan


def _names(fields: dict[Any, Any]) -> str:
    return ", ".join(sorted(str(name)[:40] for name in list(fields)[:5]))


def _json(block: Fenced) -> Any:
    try:
        return json.loads(block.text)
    except json.JSONDecodeError as error:
        raise _at(block, error.lineno - 1, error.msg) from None
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{block.name}: {error}") from None


def _yaml(block: Fenced) -> Any:
    try:
        _refuse_tricks(block)
        return yaml.load(block.text, _LOADER)  # noqa: S506 - a SafeLoader, with or without libyaml
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _at(block, mark.line if mark else 0, error.problem or str(error)) from None
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:
        raise _invalid(f"{block.name}: {' '.join(str(error).split())}") from None


def _refuse_tricks(block: Fenced) -> None:
    depth = 0
    for number, event in enumerate(yaml.parse(block.text, _LOADER)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        trick = _trick(event, depth)
        if number > MAX_VALUES:
            trick = f"more than {MAX_VALUES} values; send long plans as `steps`"
        if trick:
            raise _at(block, cast("yaml.Mark", event.start_mark).line, trick)


def _trick(event: Any, depth: int) -> str | None:
    if depth > _MAX_DEPTH:
        return f"nested deeper than {_MAX_DEPTH} levels"
    if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _LONG_NUMBER.fullmatch(event.value):
        return "a number that long is not allowed in a plan; put it in quotes"
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        return "anchors and aliases (&name, *name) are not allowed in a plan; write it out"
    if getattr(event, "tag", None):
        return f"tags ({event.tag}) are not allowed in a plan"
    return None


def _at(block: Fenced, line: int, problem: str) -> RunFailure:
    """Name the line of the prompt: the fence is at `block.line`, its text begins below."""
    return _invalid(f"line {block.line + 1 + line} of the prompt (```{block.language} block): {problem}")


def _invalid(message: str) -> RunFailure:
    return RunFailure(ErrorCode.INVALID_PLAN, message)
