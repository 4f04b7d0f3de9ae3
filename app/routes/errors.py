"""Every error that leaves the API over HTTP: `{"error": {"code", "message"}}`.

Details of unexpected errors stay in the log, under the request id that the answer names.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from app.core.errors import StorageError, TailrunError
from app.core.telemetry import get_logger
from app.routes.views import answer

_log = get_logger(__name__)
_AWAY_S = 1

_CODES = {404: "not_found", 405: "method_not_allowed", 400: "invalid_request"}


def install(app: FastAPI) -> None:
    """Make `app` answer every error in our shape."""
    for kind, handler in (
        (TailrunError, _known),
        (StorageError, _away),
        (RequestValidationError, _invalid),
        (HTTPException, _http),
    ):
        app.add_exception_handler(kind, cast("Any", handler))


def error_answer(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as an answer."""
    return answer({"error": {"code": code, "message": message}}, status, headers)


async def _known(request: Request, error: TailrunError) -> Response:
    headers: dict[str, str] = {}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    return error_answer(error.status, error.code, error.message, headers)


async def _away(request: Request, error: StorageError) -> Response:
    _log.warning("storage away", error=str(error))
    message = "The database or Redis does not answer just now; try again."
    return error_answer(503, "unavailable", message, {"Retry-After": str(_AWAY_S)})


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    message = "; ".join(_slip(slip) for slip in error.errors()) + "."
    return error_answer(422, "invalid", message)


def _slip(slip: dict[str, Any]) -> str:
    where, *names = (str(part) for part in slip["loc"])
    return f"{where} parameter {'.'.join(names)}: {slip['msg']}"


async def _http(request: Request, error: HTTPException) -> Response:
    code = _CODES.get(error.status_code, HTTPStatus(error.status_code).name.lower())
    message = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"There is nothing at {request.url.path[:200]}; /docs lists what there is."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _allowed(request)
        message = f"{request.method} is not allowed here; use {allowed}.{_instead(request.url.path)}"
        return error_answer(error.status_code, code, message, {"Allow": allowed})
    return error_answer(error.status_code, code, message, error.headers)


def _instead(path: str) -> str:
    """Say what a client that meets a 405 here most often wants."""
    match path.split("/"):
        case ["", "v1", "runs"] | ["", "v1", "runs", _]:
            return " A run is ended with POST /v1/runs/{run_id}/cancel; its record stays."
        case ["", "v1", "schedules" | "tokens" as what]:
            return f" One is deleted with DELETE /v1/{what}/{{id}}."
        case _:
            return ""


_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


def _allowed(request: Request) -> str:
    """Return the methods of all routes of the path: what refused knows only those of the first."""
    routes = request.app.routes
    methods = [name for name in _METHODS if any(_serves(route, request, name) for route in routes)]
    if "GET" in methods and "HEAD" not in methods:
        methods.insert(methods.index("GET") + 1, "HEAD")
    return ", ".join(methods)


def _serves(route: BaseRoute, request: Request, method: str) -> bool:
    return route.matches(dict(request.scope) | {"method": method})[0] is Match.FULL
