"""A schema of the user's: what fits and what does not, and nothing that it could do to the process."""

from __future__ import annotations

import time
from typing import Any

import pytest

from app.plan.result_schema import ResultSchema

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("result", "said"),
    [({"n": 1}, ""), ({"n": "x"}, 'n: "x" is not of type "integer"'), ({}, '"n" is a required property')],
)
def test_what_is_wrong_with_a_result_is_said(result: Any, said: str) -> None:
    errors = ResultSchema(SCHEMA).errors(result)
    assert said in errors
    assert bool(errors) is bool(said)


@pytest.mark.parametrize(
    "schema",
    [{"type": "nothing"}, {"$ref": "http://127.0.0.1:1/schema"}, {"$ref": "file:///etc/passwd"}],
)
def test_what_is_no_schema_or_leads_out_of_itself_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no JSON Schema"):
        ResultSchema(schema)


def test_a_pattern_cannot_hold_the_process_up() -> None:
    schema = {"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}}
    began = time.monotonic()
    assert ResultSchema(schema).errors({"a": "a" * 50_000 + "b"})
    assert time.monotonic() - began < 20


def test_errors_are_few_and_short() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    errors = ResultSchema(schema).errors({f"key {n}": "x" * 500 for n in range(100)})
    assert len(errors) <= 1_000
