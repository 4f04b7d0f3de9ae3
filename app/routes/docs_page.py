"""`GET /docs`: the OpenAPI document as a page that needs nothing but this server.

Made on the server from the document that `/openapi.json` gives out, without a script: it is there
without a way to the internet, and its policy lets the browser load one style sheet and run nothing.
All text is escaped by the template. Links are relative, so the page works below any prefix.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.routing import WebSocketRoute

from app.routes.views import answer
from app.routes.websocket import router as sockets
from tailrun import VERSION

router = APIRouter()

_FILES = Path(__file__).parent / "pages"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_ORDER = ("runs", "stream", "logs", "files", "tasks", "projects", "operations", "agent", "schedules", "queue")
"""Groups in the order in which a reader needs them; others follow as the document has them."""

_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} names",
    "pattern": "matches {}",
}
_SAYS_NOTHING = "Successful Response"  # what FastAPI writes where the answer is not described
_AUTH = {"bearer": '-H "Authorization: Bearer $TOKEN"', "staging": '-H "Tailrun-Staging-Token: $TOKEN"'}


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of a type: plain, or the name of a schema, which is shown as a link."""

    text: str
    schema: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter or a property, as a row of a table."""

    name: str
    where: str
    type: list[Word]
    required: bool
    description: str
    limits: str


@dataclass(frozen=True, slots=True)
class PageContent:
    """One media type of a body or an answer."""

    media: str
    type: list[Word]
    examples: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path, or a WebSocket (`method` WS), which OpenAPI has no words for."""

    method: str
    path: str
    description: str
    needs: str
    fields: list[Field]
    body: list[PageContent]
    answers: list[tuple[str, str, list[PageContent]]]
    curl: str

    @property
    def anchor(self) -> str:
        """Its name in the page's addresses."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.method} {self.path}".lower()).strip("-")


@router.get("/", include_in_schema=False)
async def front_door(request: Request) -> Response:
    """Send a browser to the page; tell a program where things are."""
    if "text/html" in request.headers.get("accept", ""):
        return Response(status_code=307, headers={"Location": "docs"})
    where = {"docs": "/docs", "openapi": "/openapi.json", "runs": "/v1/runs", "health": "/healthz"}
    return answer({"name": "tailrun", "version": VERSION, **where})


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Show the page."""
    return Response(_page(request.app), headers=_HEADERS, media_type="text/html")


@router.get("/docs/style.css", include_in_schema=False)
async def style() -> Response:
    """Give out its style sheet."""
    return Response(_style(), headers=_HEADERS, media_type="text/css")


@cache
def _style() -> str:
    return (_FILES / "docs.css").read_text(encoding="utf-8")


def _page(app: FastAPI) -> str:
    if not hasattr(app.state, "docs_page"):
        app.state.docs_page = render(app.openapi())
    return app.state.docs_page


def render(document: dict[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    templates = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["prose"] = _prose
    schemas: dict[str, Any] = document.get("components", {}).get("schemas", {})
    return templates.get_template("docs.html").render(
        info=document["info"],
        groups=_groups(document),
        schemas=[(name, schema, _properties(schema), _type(schema)) for name, schema in schemas.items()],
    )


def _groups(document: dict[str, Any]) -> list[tuple[str, list[Operation]]]:
    found: dict[str, list[Operation]] = {name: [] for name in _ORDER}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            # An alias has the tag of what it is, and then its own: it is listed where it is looked for.
            group = (operation.get("tags") or ["other"])[-1]
            found.setdefault(group, []).append(_operation(method.upper(), path, operation))
    found["stream"] += _websockets()
    for operations in found.values():
        operations.sort(key=lambda one: not one.path.startswith("/v1/"))  # aliases last
    return [(name, operations) for name, operations in found.items() if operations]


def _websockets() -> Iterator[Operation]:
    for route in sockets.routes:
        if isinstance(route, WebSocketRoute):
            yield Operation("WS", route.path, route.endpoint.__doc__ or "", "bearer", [], [], [], "")


def _operation(method: str, path: str, operation: dict[str, Any]) -> Operation:
    needs = next((name for one in operation.get("security", []) for name in one), "")
    body = _contents(operation.get("requestBody", {}))
    return Operation(
        method,
        path,
        operation.get("description") or operation.get("summary", ""),
        needs,
        [_parameter(parameter) for parameter in operation.get("parameters", [])],
        body,
        [
            ("other" if status == "default" else status, _said(answer), _contents(answer))
            for status, answer in operation.get("responses", {}).items()
        ],
        _curl(method, path, needs, body),
    )


def _curl(method: str, path: str, needs: str, body: list[PageContent]) -> str:
    address = re.sub(r"\{(\w+)\}", lambda found: "$" + found[1].upper(), path)
    words = ["curl", *([] if method == "GET" else ["-X", method]), f'"$API{address}"']
    if needs:
        words.append(_AUTH.get(needs, ""))
    example = next((text for content in body for _, text in content.examples), None)
    if example is not None:
        words.append("-d " + shlex.quote(json.dumps(json.loads(example), ensure_ascii=False)))
    elif body:
        words.append("--data-binary @FILE")
    return " ".join(words)


def _said(answer: dict[str, Any]) -> str:
    description = answer.get("description", "")
    return "" if description == _SAYS_NOTHING else description


def _parameter(parameter: dict[str, Any]) -> Field:
    schema = parameter.get("schema", {})
    return Field(
        parameter["name"],
        parameter["in"],
        _type({**schema, "anyOf": given} if (given := _not_null(schema)) else schema),
        parameter.get("required", False),
        parameter.get("description") or schema.get("description", ""),
        _limits(schema),
    )


def _not_null(schema: dict[str, Any]) -> list[Any]:
    """What a parameter may be: null is the one that is not sent."""
    return [one for one in schema.get("anyOf", []) if one.get("type") != "null"]


def _properties(schema: dict[str, Any]) -> list[Field]:
    required = schema.get("required", [])
    return [
        Field(name, "", _type(one), name in required, one.get("description", ""), _limits(one))
        for name, one in schema.get("properties", {}).items()
    ]


def _contents(holder: dict[str, Any]) -> list[PageContent]:
    return [
        PageContent(
            media,
            _type(content.get("schema", {})),
            [
                (name, json.dumps(example["value"], indent=2, ensure_ascii=False))
                for name, example in content.get("examples", {}).items()
            ],
        )
        for media, content in holder.get("content", {}).items()
    ]


def _type(schema: dict[str, Any]) -> list[Word]:
    """Say in words what a schema takes: `string or null`, `array of CodeStep`."""
    if "$ref" in schema:
        return [Word(schema["$ref"].rpartition("/")[2], schema=True)]
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return _joined([_type(one) for one in schema[several]])
    if values := [schema["const"]] if "const" in schema else schema.get("enum"):
        return _joined([[Word(json.dumps(value))] for value in values])
    if schema.get("type") == "array":
        return [Word("array of "), *_type(schema.get("items", {}))]
    of = schema.get("additionalProperties")
    if schema.get("type") == "object" and isinstance(of, dict):
        return [Word("object of "), *_type(of)]
    return [Word(str(schema.get("type", "anything")))]


def _joined(types: list[list[Word]]) -> list[Word]:
    words: list[Word] = []
    for one in types:
        words += [Word(" or "), *one] if words else one
    return words


def _limits(schema: dict[str, Any]) -> str:
    """Say what else holds for a value, and what it is if it is left out."""
    said: list[str] = []
    for one in (schema, *_not_null(schema)):
        said += [text.format(one[name]) for name, text in _LIMITS.items() if name in one]
        if one.get("format"):
            said.append(str(one["format"]))
    if schema.get("default") is not None:
        said.append(f"default {json.dumps(schema['default'], ensure_ascii=False)}")
    return ", ".join(said)


def _prose(text: str) -> Markup:
    """Escape a text, and show what is in backquotes as code."""
    parts = [escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:  # one is left open
        return escape(text)
    marked = (Markup("<code>{}</code>").format(part) if n % 2 else part for n, part in enumerate(parts))
    return Markup("").join(marked)
