"""The OpenAPI document: FastAPI's, with the bodies that we read ourselves and our errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app.routes.body import DOCUMENTED
from app.routes.schemas import ErrorView

VERSION = "1"
"""Of the interface, not of the program: the number in `/v1`."""

_REF = "#/components/schemas/{model}"
_ERROR = {
    "description": "What went wrong: 400 401 403 404 405 409 413 416 422 429 503.",
    "content": {"application/json": {"schema": {"$ref": _REF.format(model="ErrorView")}}},
}
_DESCRIPTION = (
    "Run agent jobs on your own machines and tail them. POST a run, follow its lines with `curl -N`, "
    "fetch its files. A body is parsed as JSON whatever its Content-Type; unknown fields are refused."
)


def document(app: FastAPI) -> dict[str, Any]:
    """Build the document of `app`."""
    body = get_openapi(
        title="Tailrun",
        version=VERSION,
        description=_DESCRIPTION,
        routes=app.routes,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    models = [(model, "validation") for model in (*DOCUMENTED.values(), ErrorView)]
    _, extra = models_json_schema(models, ref_template=_REF)  # pyright: ignore[reportArgumentType]
    schemas = body.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(extra.get("$defs", {}))
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path in body["paths"].values():
        for operation in path.values():
            _describe_errors(operation)
    body["components"]["schemas"] = dict(sorted(schemas.items()))
    return body


def _describe_errors(operation: dict[str, Any]) -> None:
    operation["responses"].pop("422", None)
    if operation.get("tags") != ["health"]:
        operation["responses"]["default"] = _ERROR
