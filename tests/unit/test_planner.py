"""From what a run asks for to its steps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.agent.planner import NOT_CARRIED_OUT, plan
from app.core.models import Run, RunKind, RunStatus, Step
from app.plan.fenced_plans import MAX_BLOCK, NO_MODEL
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level

LS = Step("s1", "shell", {"command": "ls"})


def run_of(**spec: Any) -> Run:
    return Run(
        run_id="r1", user_id="u1", kind=RunKind.PROMPT, status=RunStatus.RUNNING, spec=spec, created_at=0
    )


def refusal(**spec: Any) -> str:
    with pytest.raises(RunFailure) as refused:
        plan(run_of(**spec))
    assert refused.value.code is ErrorCode.INVALID_PLAN
    assert not refused.value.retried
    return refused.value.message


def fenced(text: str, language: str = "yaml") -> str:
    return f"Please do:\n```{language}\n{text}\n```\nThanks"


def test_steps_are_taken_as_they_are() -> None:
    made = plan(run_of(steps=[{"tool": "shell", "args": {"command": "ls"}}]))
    assert (made.steps, made.planner, made.notes) == ([LS], "steps", [])


def test_steps_that_a_newer_release_accepted_fail_by_name() -> None:
    assert refusal(steps=[{"tool": "teleport"}]).startswith("step 1: unknown tool 'teleport'")


def test_argv_is_one_step() -> None:
    made = plan(run_of(argv=["echo", "ü b"]))
    assert (made.steps, made.planner) == ([Step("s1", "argv", {"argv": ["echo", "ü b"]})], "argv")


@pytest.mark.parametrize("argv", [[], "ls", [1], ["a\0"]])
def test_an_argv_that_is_none_is_refused(argv: Any) -> None:
    assert refusal(argv=argv).startswith("argv must")


def test_a_run_that_asks_for_nothing_is_refused() -> None:
    assert refusal() == "the run has neither steps nor argv nor a prompt"


@pytest.mark.parametrize(
    "prompt",
    [
        fenced("- tool: shell\n  args: {command: ls}"),
        fenced("steps:\n- tool: shell\n  args:\n    command: ls"),
        fenced('[{"tool": "shell", "args": {"command": "ls"}}]', "json"),
        fenced('{"steps": [{"tool": "shell", "args": {"command": "ls"}}]}', "JSON"),
        fenced("- tool: shell\n  args: {command: ls}", "yml title=plan"),
        fenced("- tool: shell\n  args: {command: ls}").replace("\n", "\r\n"),
        fenced("- tool: shell\n  args: {command: ls}").replace("\n", "\r"),
        "```yaml\n- tool: shell\n  args: {command: ls}",
        "~~~~yaml\n- tool: shell\n  args: {command: ls}\n~~~~",
        "```python\n```\n" + fenced("- tool: shell\n  args: {command: ls}"),
        fenced("a: 1") + "\n" + fenced("- tool: shell\n  args: {command: ls}"),
        "````markdown\n```yaml\n- not: a plan\n```\n````\n" + fenced("- tool: shell\n  args: {command: ls}"),
    ],
)
def test_a_fenced_block_is_the_plan(prompt: str) -> None:
    made = plan(run_of(prompt=prompt))
    assert (made.steps, made.planner) == ([LS], "fenced")
    [(level, note)] = made.notes
    assert level is Level.INFO
    assert note.endswith("run as written; the rest of the prompt is not carried out.")


def test_text_in_a_fenced_block_keeps_its_lines() -> None:
    block = "- tool: file_write\n  args:\n    path: a.txt\n    content: |\n      ünï\n\n      ```not the end"
    made = plan(run_of(prompt=fenced(block).replace("\n", "\r\n")))
    assert made.steps[0].args["content"] == "ünï\n\n```not the end\n"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            fenced("- tool: ["),
            "line 4 of the prompt (```yaml block): did not find expected node content",
        ),
        (
            fenced('{"steps": [\n}', "json"),
            "line 4 of the prompt (```json block): Expecting value",
        ),
        (
            fenced("- tool: shell\n- tool: teleport"),
            "```yaml block at line 2 of the prompt: step 1 (shell): args is required",
        ),
        (
            fenced("steps: []"),
            "```yaml block at line 2 of the prompt: steps must hold 1 to 100 steps, not 0",
        ),
        (
            fenced("steps: [{tool: file_list}]\nenv: {A: b}"),
            "```yaml block at line 2 of the prompt: beside steps, nothing else is allowed: env",
        ),
        (
            fenced("- &a\n  tool: file_list\n- *a"),
            (
                "line 3 of the prompt (```yaml block): anchors and aliases (&name, *name) are not allowed "
                "in a plan; write it out"
            ),
        ),
        (
            fenced("- tool: x\n- !!python/object/apply:os.system [ls]"),
            (
                "line 4 of the prompt (```yaml block): tags "
                "(tag:yaml.org,2002:python/object/apply:os.system) are not allowed in a plan"
            ),
        ),
        (
            fenced("- " + "[" * 50),
            "line 3 of the prompt (```yaml block): nested deeper than 20 levels",
        ),
        (
            fenced("- a: [" + "1," * 10_000 + "]"),
            "line 3 of the prompt (```yaml block): more than 10000 values; send long plans as `steps`",
        ),
        (
            fenced("a: b") * 11,
            "the prompt holds more than 10 yaml or json blocks: which is the plan?",
        ),
        (
            fenced("- at: 2026-13-45"),
            "```yaml block at line 2 of the prompt: month must be in 1..12",
        ),
        (
            fenced("- a: b" + " " * MAX_BLOCK),
            (
                "```yaml block at line 2 of the prompt: longer than 262144 characters; "
                "send long plans as `steps`"
            ),
        ),
        (
            fenced("- tool: file_list") + "\n" + fenced('[{"tool": "file_list"}]', "json"),
            "the prompt holds 2 plans, at lines 2 and 7: put all steps into one block",
        ),
    ],
)
def test_a_broken_block_is_refused_with_its_line(prompt: str, message: str) -> None:
    assert refusal(prompt=prompt) == message


def test_a_deep_json_block_is_refused() -> None:
    assert "recursion" in refusal(prompt=fenced("[" * 100_000, "json"))


def test_a_bare_prompt_is_refused() -> None:
    """The API refuses it already; a row of an earlier release gets here."""
    assert refusal(prompt="Write me a poem") == NO_MODEL


def test_the_smoke_plan_says_first_that_no_model_carries_the_prompt_out() -> None:
    made = plan(run_of(prompt="Write me a poem about ünïcode\r\n", planner="smoke"))
    assert made.planner == "smoke"
    assert made.notes[0] == (Level.WARNING, NOT_CARRIED_OUT)
    assert "NOT carried out" in NOT_CARRIED_OUT
    assert made.steps[0].args == {
        "path": "prompt.txt",
        "content": "Write me a poem about ünïcode\r\n",
        "encoding": "utf-8",
    }
    assert [step.tool for step in made.steps] == ["file_write", "file_list", "shell"]


def test_a_block_that_holds_no_steps_is_named() -> None:
    said = "The ```yaml block at line 2 of the prompt holds no list of steps, so it is not a plan."
    made = plan(run_of(prompt=fenced("replicas: 3"), planner="smoke"))
    assert made.planner == "smoke"
    assert made.notes[-1] == (Level.WARNING, said)
    assert refusal(prompt=fenced("replicas: 3")) == f"{said} {NO_MODEL}"


def test_the_same_run_has_the_same_plan_on_every_attempt() -> None:
    run = run_of(prompt="hello", planner="smoke")
    assert plan(run) == plan(run)


@given(
    st.text(),
    st.sampled_from(["yaml", "json"]),
    st.sampled_from(["", "- tool: shell\n  args: ", "steps: ", '[{"tool": "shell", "args": ']),
)
def test_arbitrary_blocks_are_plans_or_invalid_plans(text: str, language: str, start: str) -> None:
    assert code_of(fenced(start + text, language)) in {None, ErrorCode.INVALID_PLAN}


@given(st.text(alphabet="[]{}:,-&*!|>'\"#%@`?=~<. \n\t01axyzTn_+e"))
def test_arbitrary_yaml_syntax_is_a_plan_or_an_invalid_plan(text: str) -> None:
    assert code_of(fenced(text)) in {None, ErrorCode.INVALID_PLAN}


def code_of(prompt: str) -> ErrorCode | None:
    try:
        plan(run_of(prompt=prompt))
    except RunFailure as refused:
        return refused.code
    return None
