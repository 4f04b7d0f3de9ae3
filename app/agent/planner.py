"""The planner: what a run asks for → the steps that do it.

There is no language model here: `app.agent.loop` carries out what asks for one. Another run brings its
plan along: as `steps`, as an `argv`, or as a fenced block in its prompt. A bare prompt is refused, unless it
asks for the smoke plan, which shows every part at work: its first line states that the prompt was not
carried out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from app.agent.tools.task import TaskProgram
from app.core.errors import Unprocessable
from app.core.models import Run, RunKind, Step
from app.plan.fenced_plans import (
    AGENT,
    MAX_BLOCKS,
    NO_MODEL,
    SMOKE,
    Fenced,
    NotAPlan,
    fenced_blocks,
    read_block,
)
from app.plan.steps import TASK, argv_step, parse_steps
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level

Note = tuple[Level, str]

NOT_CARRIED_OUT = (
    "No model carries out a prompt here: this prompt was NOT carried out. "
    "A smoke plan runs instead; it only shows that files, shell and logs work."
)
HOW_TO_PLAN = (
    "To have something done today, put steps into the prompt as a ```yaml block, or send `steps` or `argv`."
)
AS_WRITTEN = "The steps in the {name} run as written; the rest of the prompt is not carried out."

_FACTS = """\
echo "machine: $(uname -sm)"
echo "entries in the workspace: $(ls | wc -l | tr -d ' ')"
echo "prompt: $(wc -c < prompt.txt | tr -d ' ') bytes in prompt.txt"
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps, the name of the planner, and the first lines of the run's stream."""

    steps: list[Step]
    planner: str
    notes: list[Note] = field(default_factory=list[Note])


def plan(run: Run, task: TaskProgram | None = None) -> Plan:
    """Make the plan of `run`: the same one on every attempt, for finished steps are known by id.

    `task` is the program of a run of kind `task`.

    Raises:
        RunFailure: INVALID_PLAN; the message names the place and the problem.
    """
    match run.spec:
        case {"steps": steps}:
            return Plan(_checked(steps), "steps")
        case {"argv": argv}:
            return Plan([argv_step(_argv(argv))], "argv")
        case {"planner": str(planner)} if planner not in (SMOKE, AGENT):
            text = f"this worker has no planner {planner[:50]!r}; one of a newer release can take the run"
            raise RunFailure(ErrorCode.EXECUTOR_UNAVAILABLE, text, away=True)
        case {"prompt": str(prompt), **rest}:
            return _from_prompt(prompt, smoke=rest.get("planner") == SMOKE)
        case {"type": _} if task is not None:
            return _typed(task)
        case _:
            raise _invalid("the run has neither steps nor argv nor a prompt")


def is_agent(run: Run) -> bool:
    """Whether a model carries out the run's prompt."""
    return run.kind is RunKind.PROMPT and run.spec.get("planner") == AGENT


def _typed(program: TaskProgram) -> Plan:
    """One step; its argv is the first line of the log, whole."""
    task, argv = program.task, list(program.argv)
    args = {"type": task.name, "command": task.command, "argv": argv}
    step = Step("s1", TASK, args, task.type.timeout_s, wants=program.wants)
    return Plan([step], "task", [(Level.INFO, orjson.dumps(argv).decode())])


def _from_prompt(prompt: str, *, smoke: bool) -> Plan:
    plans: list[tuple[Fenced, Any]] = []
    notes: list[Note] = [(Level.WARNING, NOT_CARRIED_OUT), (Level.INFO, HOW_TO_PLAN)]
    for number, block in enumerate(fenced_blocks(prompt), 1):
        if number > MAX_BLOCKS:
            raise _invalid(f"the prompt holds more than {MAX_BLOCKS} yaml or json blocks: which is the plan?")
        try:
            plans.append((block, read_block(block)))
        except NotAPlan:
            notes.append((Level.WARNING, f"The {block.name} holds no list of steps, so it is not a plan."))
    if len(plans) > 1:
        lines = " and ".join(str(block.line) for block, _ in plans[:2])
        raise _invalid(f"the prompt holds {len(plans)} plans, at lines {lines}: put all steps into one block")
    if plans:
        block, steps = plans[0]
        note = (Level.INFO, AS_WRITTEN.format(name=block.name))
        return Plan(_checked(steps, f"{block.name}: "), "fenced", [note])
    if not smoke:
        raise _invalid(" ".join([*(text for _, text in notes[2:]), NO_MODEL]))
    return Plan(_smoke(prompt), SMOKE, notes)


def _smoke(prompt: str) -> list[Step]:
    return [
        Step("s1", "file_write", {"path": "prompt.txt", "content": prompt, "encoding": "utf-8"}),
        Step("s2", "file_list", {"prefix": ""}),
        Step("s3", "shell", {"command": _FACTS}, timeout_s=60),
    ]


def _checked(raw: Any, where: str = "") -> list[Step]:
    try:
        return parse_steps(raw)
    except Unprocessable as error:
        raise _invalid(where + error.message) from error


def _argv(raw: Any) -> list[str]:
    if not isinstance(raw, list) or not raw:
        raise _invalid("argv must be a list that begins with a program's name")
    words = cast("list[Any]", raw)
    if not all(isinstance(word, str) and "\0" not in word for word in words):
        raise _invalid("argv must hold strings without NUL characters")
    return cast("list[str]", words)


def _invalid(message: str) -> RunFailure:
    return RunFailure(ErrorCode.INVALID_PLAN, message)
