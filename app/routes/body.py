"""Request bodies: bounded, JSON whatever the Content-Type says, and checked field by field.

`curl -d` sends a form type, so the header decides nothing here. The limit is enforced while
reading, for a `Content-Length` may be missing or wrong. Unknown fields are refused by the
models, for a misspelt one would be silently ignored otherwise.

What several routes take beside a body: how lines look, which page, numbers in headers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar, cast

import orjson
from fastapi import Depends, Header, Query, Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.core.errors import InvalidRequest, TooLarge, Unprocessable
from app.core.paging import CURSOR_PATTERN
from app.plan.explain import explain, kind_of
from app.routes.auth import CurrentUser, services
from tailrun.process.lines import Level, Stream

MAX_DEPTH = 64
"""Levels of nesting that a body may have; deeper ones are an attack on whoever walks them."""

MAX_VALUES = 20_000
"""Values of a body in all: more than 100 steps have, and few enough to be refused one by one."""

MAX_KEYS = 1_000
"""Fields of one object: each that is wrong is an error of its own for pydantic."""

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
        raise InvalidRequest('The body is empty; send a JSON object, such as {"argv": ["echo", "hello"]}.')
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {kind_of(body)}.")
    _check_extent(cast("Any", body))
    return cast("dict[str, Any]", body)


def _check_extent(body: Any) -> None:
    """Refuse what is too deep or has too many values; without recursion, and without looking at them all."""
    layer, levels, values = [body], 0, 0
    while layer:
        levels += 1
        values += sum(map(len, layer))
        if levels > MAX_DEPTH:
            raise InvalidRequest(f"The body is nested deeper than {MAX_DEPTH} levels.")
        if values > MAX_VALUES:
            raise InvalidRequest(f"The body holds more than {MAX_VALUES} values; send less at once.")
        if any(len(item) > MAX_KEYS for item in layer if isinstance(item, dict)):
            raise InvalidRequest(f"An object in the body has more than {MAX_KEYS} fields.")
        inner = (item.values() if isinstance(item, dict) else item for item in layer)
        layer = [item for some in inner for item in some if isinstance(item, (dict, list))]


def check(model: type[Model], body: dict[str, Any]) -> Model:
    """Check a body against its model; `Unprocessable` names the field and what is allowed."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise Unprocessable(explain(error, model) + ".") from None


def json_body(model: type[Model]) -> Any:
    """Make the dependency that reads and checks a body; the caller is authenticated first."""

    async def read(request: Request, _caller: CurrentUser) -> Model:
        limit = services(request).settings.api.body_max_bytes
        return check(model, await read_json(request, limit))

    return Depends(cast("Callable[..., Awaitable[Model]]", read))


async def _raw_object(request: Request, _caller: CurrentUser) -> dict[str, Any]:
    return await read_json(request, services(request).settings.api.body_max_bytes)


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
    if announces_more(request, limit):
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


MAX_SEQ = 2**53
_DIGITS = 18
"""More than any number here has. Python refuses to read thousands of them with the error of a bug."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Of your choice: repeating the request with the same key makes nothing a second time.",
    ),
]


def made_before(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Describe the answer to a repeated key for OpenAPI."""
    return {200: {"model": model, "description": "What this Idempotency-Key made before."}}


AnsiParameter = Annotated[
    Literal["keep", "strip"], Query(description="`strip`: without colours and other terminal sequences.")
]
PageLimit = Annotated[int, Query(ge=1, le=200)]
CursorParameter = Annotated[
    str | None, Query(pattern=CURSOR_PATTERN, description="`next` of the page before.")
]
LevelParameter = Annotated[Level | None, Query(description="Lines at least this severe.")]
PipeParameter = Annotated[Stream | None, Query(description="Lines of this pipe.")]
CollapseParameter = Annotated[
    Literal["cr", "none"] | None,
    Query(
        description="`cr`: of a progress bar's updates only the last state (default for text); `none`: all."
    ),
]


def whole_number(text: str, most: int) -> int | None:
    """Return a number of the user's from 0 to `most`; None for whatever is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        return None
    number = int(text)
    return number if number <= most else None


def announces_more(request: Request, limit: int) -> bool:
    """Whether the request says itself that its body has more than `limit` bytes."""
    announced = request.headers.get("content-length", "")
    return announced.isdecimal() and whole_number(announced, limit) is None


def collapses(collapse: str | None, *, text: bool) -> bool:
    """Whether updates are collapsed: as asked for, else in text alone."""
    return text if collapse is None else collapse == "cr"
