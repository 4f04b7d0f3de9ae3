"""What the catalogue accepts, and the words in which it refuses."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from app.core.errors import Unprocessable
from app.core.models import Step
from app.plan.explain import explain
from app.plan.steps import ARGV, TOOLS, StepIn, argv_step, decode_content, parse_steps

NAMES = "code, shell, file_write, file_read, file_delete, file_list"

ACCEPTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"tool": "code", "args": {"language": "python", "source": "print('ü')\n"}},
        {"language": "python", "source": "print('ü')\n", "args": []},
    ),
    (
        {"tool": "code", "args": {"language": "node", "source": "1", "args": ["-x", ""]}},
        {"language": "node", "source": "1", "args": ["-x", ""]},
    ),
    ({"tool": "shell", "args": {"command": "ls | wc"}}, {"command": "ls | wc"}),
    (
        {"tool": "file_write", "args": {"path": "a/ü.txt", "content": ""}},
        {"path": "a/ü.txt", "encoding": "utf-8", "content": ""},
    ),
    (
        {"tool": "file_write", "args": {"path": "a", "content": "AA\n==", "encoding": "base64"}},
        {"path": "a", "encoding": "base64", "content": "AA\n=="},
    ),
    ({"tool": "file_read", "args": {"path": "a..b/..c"}}, {"path": "a..b/..c"}),
    ({"tool": "file_delete", "args": {"path": "./a"}}, {"path": "./a"}),
    ({"tool": "file_list"}, {"prefix": ""}),
    ({"tool": "file_list", "args": {"prefix": "docs/"}}, {"prefix": "docs/"}),
]

REFUSED: list[tuple[Any, str]] = [
    (None, "steps must be a list of 1 to 100 steps, not null"),
    ({"steps": []}, "steps must be a list of 1 to 100 steps, not an object"),
    ([], "steps must hold 1 to 100 steps, not 0"),
    ([{"tool": "file_list"}] * 101, "steps must hold 1 to 100 steps, not 101"),
    (["ls"], 'step 1 must be an object like {"tool": "shell", "args": {"command": "ls"}}, not a string'),
    ([{}], f"step 1: tool is required; one of {NAMES}"),
    ([{"tool": 5}], f"step 1: tool must be a string, not a number; one of {NAMES}"),
    ([{"tool": "shel"}], f"step 1: unknown tool 'shel'; did you mean 'shell'? tools: {NAMES}"),
    ([{"tool": "bash"}], f"step 1: unknown tool 'bash'; did you mean 'shell'? tools: {NAMES}"),
    ([{"tool": "python"}], f"step 1: unknown tool 'python'; did you mean 'code'? tools: {NAMES}"),
    ([{"tool": "browser"}], f"step 1: unknown tool 'browser'; tools: {NAMES}"),
    ([{"tool": "argv", "args": {"argv": ["ls"]}}], f"step 1: unknown tool 'argv'; tools: {NAMES}"),
    ([{"tool": "x" * 99}], f"step 1: unknown tool '{'x' * 57}…'; tools: {NAMES}"),
    ([{"tool": "shell"}], "step 1 (shell): args is required"),
    ([{"tool": "shell", "args": {}}], "step 1 (shell): args.command is required"),
    (
        [{"tool": "shell", "args": {"comand": "ls"}}],
        "step 1 (shell): args.comand is not a field; did you mean 'command'? allowed: command (and 1 more)",
    ),
    (
        [{"tool": "file_list", "timeout": 3}],
        (
            "step 1 (file_list): timeout is not a field; did you mean 'timeout_s'? "
            "allowed: id, timeout_s, continue_on_error, tool, args"
        ),
    ),
    ([{"tool": "file_list", 5: 5}], "step 1 (file_list): 5 is not a field: names are strings"),
    ([{"tool": "shell", "args": "ls"}], "step 1 (shell): args must be an object, not a string"),
    (
        [{"tool": "file_list"}, {"tool": "shell", "args": {"command": 5}}],
        "step 2 (shell): args.command must be a string, not a number; put it in quotes",
    ),
    (
        [{"tool": "shell", "args": {"command": True}}],
        "step 1 (shell): args.command must be a string, not a boolean; put it in quotes",
    ),
    (
        [{"tool": "shell", "args": {"command": ["ls"]}}],
        "step 1 (shell): args.command must be a string, not a list",
    ),
    ([{"tool": "shell", "args": {"command": ""}}], "step 1 (shell): args.command must not be empty"),
    (
        [{"tool": "shell", "args": {"command": "a\0b"}}],
        "step 1 (shell): args.command must not hold a NUL character",
    ),
    (
        [{"tool": "shell", "args": {"command": "\ud800"}}],
        "step 1 (shell): args.command must be valid Unicode",
    ),
    (
        [{"tool": "shell", "args": {"command": "ü" * 60_000}}],
        "step 1 (shell): args.command must be at most 100000 bytes long; put long programs into a code step",
    ),
    (
        [{"tool": "shell", "args": {"command": "x" * 100_001}}],
        "step 1 (shell): args.command must be at most 100000 characters long",
    ),
    (
        [{"tool": "code", "args": {"language": "ruby", "source": "1"}}],
        "step 1 (code): args.language must be one of python, bash, node, not 'ruby'",
    ),
    (
        [{"tool": "code", "args": {"language": 10**5000, "source": "1"}}],
        "step 1 (code): args.language must be one of python, bash, node, not a number",
    ),
    (
        [{"tool": "code", "args": {"language": "node", "source": "1", "args": ["a", 1]}}],
        "step 1 (code): args.args[1] must be a string, not a number; put it in quotes",
    ),
    (
        [{"tool": "code", "args": {"language": "node", "source": "1", "args": "a"}}],
        "step 1 (code): args.args must be a list, not a string",
    ),
    (
        [{"tool": "code", "args": {"language": "node", "source": "1", "args": ["a"] * 101}}],
        "step 1 (code): args.args must hold at most 100 items",
    ),
    ([{"tool": "file_read", "args": {"path": ""}}], "step 1 (file_read): args.path must not be empty"),
    (
        [{"tool": "file_read", "args": {"path": "a/../b"}}],
        "step 1 (file_read): args.path can't be 'a/../b': it holds '..'",
    ),
    (
        [{"tool": "file_read", "args": {"path": "/etc"}}],
        "step 1 (file_read): args.path can't be '/etc': it is absolute; give it relative to the workspace",
    ),
    (
        [{"tool": "file_read", "args": {"path": "a\0"}}],
        "step 1 (file_read): args.path can't be 'a\\x00': it holds a control character or is not Unicode",
    ),
    (
        [{"tool": "file_read", "args": {"path": "a/"}}],
        "step 1 (file_read): args.path can't be 'a/': it names no file",
    ),
    (
        [{"tool": "file_read", "args": {"path": "./."}}],
        "step 1 (file_read): args.path can't be './.': it names no file",
    ),
    (
        [{"tool": "file_list", "args": {"prefix": "../"}}],
        "step 1 (file_list): args.prefix can't be '../': it holds '..'",
    ),
    (
        [{"tool": "file_write", "args": {"path": "a", "content": "?", "encoding": "base64"}}],
        "step 1 (file_write): args.content is not valid base64",
    ),
    (
        [{"tool": "file_write", "args": {"path": "a", "content": "?", "encoding": "latin-1"}}],
        "step 1 (file_write): args.encoding must be one of utf-8, base64, not 'latin-1'",
    ),
    ([{"tool": "file_list", "timeout_s": 0}], "step 1 (file_list): timeout_s must be greater than 0, not 0"),
    (
        [{"tool": "file_list", "timeout_s": 1e9}],
        "step 1 (file_list): timeout_s must be at most 604800, not 1000000000.0",
    ),
    (
        [{"tool": "file_list", "timeout_s": float("nan")}],
        "step 1 (file_list): timeout_s must be a finite number",
    ),
    ([{"tool": "file_list", "timeout_s": 10**400}], "step 1 (file_list): timeout_s is too large a number"),
    (
        [{"tool": "file_list", "timeout_s": "5"}],
        "step 1 (file_list): timeout_s must be a number, not a string",
    ),
    (
        [{"tool": "file_list", "continue_on_error": "yes"}],
        "step 1 (file_list): continue_on_error must be true or false, not a string",
    ),
    (
        [{"tool": "file_list", "id": "a b"}],
        "step 1 (file_list): id must be 1 to 32 letters, digits, _ or -, not 'a b'",
    ),
    (
        [{"tool": "file_list", "id": "a\n"}],
        "step 1 (file_list): id must be 1 to 32 letters, digits, _ or -, not 'a\\n'",
    ),
    (
        [{"tool": "file_list", "id": "s2"}, {"tool": "file_list"}],
        "step 2: id 's2' is already the id of step 1; a step without an id is named s and its number",
    ),
]


@pytest.mark.parametrize(("raw", "args"), ACCEPTED)
def test_arguments_come_back_complete(raw: dict[str, Any], args: dict[str, Any]) -> None:
    assert parse_steps([raw]) == [Step("s1", raw["tool"], args)]


@pytest.mark.parametrize(("raw", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_refusal_names_step_field_and_what_is_allowed(raw: Any, message: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        parse_steps(raw)
    assert refused.value.message == message
    assert (refused.value.status, refused.value.code) == (422, "invalid_steps")


def test_steps_without_an_id_are_named_by_their_number() -> None:
    steps = parse_steps(
        [{"tool": "file_list"}, {"tool": "file_list", "id": "Mid_1-x"}, {"tool": "file_list", "id": None}],
    )
    assert [step.id for step in steps] == ["s1", "Mid_1-x", "s3"]


def test_options_of_a_step_are_kept() -> None:
    [step] = parse_steps([{"tool": "file_list", "timeout_s": 5, "continue_on_error": True}])
    assert (step.timeout_s, step.continue_on_error) == (5, True)


def test_parsed_arguments_are_accepted_again() -> None:
    """A run keeps its steps as they were POSTed and reads them on every attempt."""
    for raw, _ in ACCEPTED:
        [step] = parse_steps([raw])
        assert parse_steps([{"tool": step.tool, "args": step.args}]) == [step]


def test_a_run_of_kind_argv_has_one_step() -> None:
    assert argv_step(["ls", "-l"]) == Step("s1", ARGV, {"argv": ["ls", "-l"]})


def test_content_in_base64_may_be_wrapped() -> None:
    content = bytes(range(256))
    assert decode_content(base64.encodebytes(content).decode(), "base64") == content


def test_openapi_sees_every_tool_with_a_description() -> None:
    schema = TypeAdapter(StepIn).json_schema()
    assert set(schema["discriminator"]["mapping"]) == set(TOOLS)
    for name, definition in schema["$defs"].items():
        assert definition["description"], name
        assert definition["additionalProperties"] is False, name


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Body(BaseModel):
    """A body of the API, as other models are explained too."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tries: int = Field(1, ge=1)
    words: list[str] = Field(default_factory=list[str], min_length=1)
    name: str = Field("abc", min_length=2, pattern="^[a-z]+$")
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    inner: list[_Inner] = Field(default_factory=list[_Inner])
    moment: datetime | None = None

    @model_validator(mode="after")
    def _odd(self) -> _Body:
        if self.tries == 13:
            raise ValueError("is unlucky")
        return self


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"tries": "1"}, "tries must be a whole number, not a string"),
        ({"tries": 0}, "tries must be at least 1, not 0"),
        ({"tries": -(10**5000)}, "tries must be at least 1, not a number that long"),
        ({"tries": 13}, "the body is unlucky"),
        ({"words": []}, "words must not be empty"),
        ({"name": "a"}, "name must be at least 2 long"),
        ({"name": "a b"}, "name must match ^[a-z]+$, not 'a b'"),
        ({"labels": []}, "labels must be an object, not a list"),
        ({"inner": [{"x": 1}]}, "inner[0].x is not a field"),
        ({"moment": "x"}, "moment is not valid: Input should be a valid datetime"),
    ],
)
def test_other_bodies_are_explained_in_the_same_words(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as slip:
        _Body.model_validate(body)
    assert explain(slip.value, _Body) == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
STEPLIKE = st.fixed_dictionaries(
    {"tool": st.sampled_from(list(TOOLS)) | JSON},
    optional={
        "id": JSON,
        "timeout_s": JSON,
        "continue_on_error": JSON,
        "args": JSON
        | st.dictionaries(
            st.sampled_from(
                ["path", "content", "encoding", "prefix", "command", "language", "source", "args"],
            ),
            JSON | st.sampled_from(["base64", "utf-8", "python"]),
        ),
    },
)


@given(JSON | st.lists(STEPLIKE | JSON, max_size=4))
def test_arbitrary_json_is_steps_or_unprocessable(raw: Any) -> None:
    message = refusal(raw)
    assert message is None or (message.startswith("step") and len(message) < 400)


def refusal(raw: Any) -> str | None:
    try:
        parse_steps(raw)
    except Unprocessable as refused:
        return refused.message
    return None
