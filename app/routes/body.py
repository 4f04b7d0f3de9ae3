"""Request bodies: bounded, JSON whatever the Content-Type says, and checked field by field.

`curl -d` sends a form type, so the header decides nothing here. The limit is enforced while
reading, for a `Content-Length` may be missing or wrong. Unknown fields are refused by the
models, for a misspelt one would be silently ignored otherwise.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar, cast

import orjson
from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.catalogue_errors import explain, kind_of
from app.errors import InvalidRequest, TooLarge, Unprocessable
from app.routes.deps import CurrentUser, services

MAX_DEPTH = 64
"""Levels of nesting that a body may have; deeper ones are an attack on whoever walks them."""

Model = TypeVar("Model", bound=BaseModel)

DOCUMENTED: dict[str, type[BaseModel]] = {}
"""The models of all bodies by name: what the OpenAPI document must add to its components."""


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """Read a body of at most `limit` bytes as a JSON object.

    Raises:
        TooLarge: as soon as more than `limit` bytes are announced or arrive.
        InvalidRequest: not JSON, not an object, nested too deeply, or cut off.
    """
    return parse_object(await _read(request, limit))


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse one JSON object; `InvalidRequest` says what is wrong with anything else."""
    if not raw.strip():
        raise InvalidRequest('The body is empty; send a JSON object, such as {"prompt": "…"}.')
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {kind_of(body)}.")
    if depth(cast("Any", body)) > MAX_DEPTH:
        raise InvalidRequest(f"The body is nested deeper than {MAX_DEPTH} levels.")
    return cast("dict[str, Any]", body)


def depth(value: Any) -> int:
    """Count the levels of nesting, without recursion; stops counting past `MAX_DEPTH`."""
    levels, layer = 0, [value]
    while layer and levels <= MAX_DEPTH:
        inner: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                inner.extend(cast("dict[str, Any]", item).values())
            elif isinstance(item, list):
                inner.extend(cast("list[Any]", item))
        levels += any(isinstance(item, (dict, list)) for item in layer)
        layer = [item for item in inner if isinstance(item, (dict, list))]
    return levels


def check(model: type[Model], body: dict[str, Any]) -> Model:
    """Check a body against its model; `Unprocessable` names the field and what is allowed."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise Unprocessable(explain(error, model) + ".") from None


def json_body(model: type[Model]) -> Any:
    """Make the dependency that reads and checks a body; the caller is authenticated first."""

    async def read(request: Request, _caller: CurrentUser) -> Model:
        limit = services(request).settings.body_max_bytes
        return check(model, await read_json(request, limit))

    return Depends(cast("Callable[..., Awaitable[Model]]", read))


async def _raw_object(request: Request, _caller: CurrentUser) -> dict[str, Any]:
    return await read_json(request, services(request).settings.body_max_bytes)


JsonObject = Annotated[dict[str, Any], Depends(_raw_object)]
"""A body whose model depends on what it says (`action`)."""


def documents(*models: type[BaseModel], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    """Describe the body for OpenAPI: `@router.post(…, openapi_extra=documents(NewRun))`."""
    DOCUMENTED.update({model.__name__: model for model in models})
    refs = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    content: dict[str, Any] = {"schema": refs[0] if len(refs) == 1 else {"oneOf": refs}}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


async def _read(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            pieces.append(piece)
    except ClientDisconnect:
        raise InvalidRequest("The connection closed before the whole body had come.") from None
    return b"".join(pieces)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes; put large inputs into files of the run.")
