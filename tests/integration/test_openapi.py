"""The committed OpenAPI document is the one that the code makes, and says what clients need."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.main import openapi_yaml

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(openapi_yaml())
OPERATIONS = [
    (method, path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
NAMES = [f"{method} {path}" for method, path, _ in OPERATIONS]


def test_the_committed_document_is_the_generated_one() -> None:
    """If not: `python -m app openapi > docs/openapi.yaml`."""
    assert COMMITTED.read_text(encoding="utf-8") == openapi_yaml()


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=NAMES)
def test_every_operation_says_what_it_does_and_how_it_fails(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    """A description, an answer, our error shape; a token wherever one is needed."""
    assert operation["description"]
    assert any(status.startswith("2") for status in operation["responses"])
    if operation["tags"] != ["health"]:
        schema = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorView"}
        scheme = "staging" if operation["tags"] == ["staging"] else "bearer"
        assert operation["security"] == [{scheme: []}]
    assert set(re.findall(r"\{(\w+)\}", path)) == {
        parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"
    }


@pytest.mark.parametrize("path", ["/v1/runs", "/agent/execute", "/tasks", "/api/v1/operations", "/v1/tokens"])
def test_a_body_has_a_schema_and_examples(path: str) -> None:
    """Although we parse it ourselves."""
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert content["examples"]
    assert "$ref" in str(content["schema"])


def test_every_reference_leads_somewhere() -> None:
    """No schema is missing, none is left over."""
    named = set(re.findall(r"#/components/schemas/([\w.-]+)", openapi_yaml()))
    assert named == set(DOCUMENT["components"]["schemas"])


def test_the_steps_of_a_run_are_described_tool_by_tool() -> None:
    """The catalogue's own models are in the document."""
    items = DOCUMENT["components"]["schemas"]["NewRun"]["properties"]["steps"]["anyOf"][0]["items"]
    assert set(items["discriminator"]["mapping"]) >= {"shell", "code", "file_write"}
