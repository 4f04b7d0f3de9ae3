"""A run's files over HTTP: list, download, upload, delete, and all of them as one archive.

Content is streamed both ways and never held whole. Uploads and deletions are allowed in
every state of the run: a held run gets its inputs here, and files of a running one may be
looked at and mended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from contextlib import aclosing, contextmanager
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Send

from app.errors import (
    InvalidRequest,
    NotFound,
    RangeNotSatisfiable,
    StorageError,
    TooLarge,
    Unavailable,
)
from app.models import Run, format_ts
from app.routes.deps import CurrentServices, OwnRun, Services
from app.routes.failures import error_answer
from app.routes.file_headers import byte_range, content_type, disposition, etag, headers, not_modified
from app.routes.file_schemas import FileList, FileView
from app.routes.parameters import announces_more
from app.routes.views import answer
from app.storage.archive import ArchiveFormat, archive
from app.storage.workspace import FileInfo, Workspace

router = APIRouter(tags=["files"])

FilePath = Annotated[
    str, Path(description="The file's path within the workspace.", examples=["report/chart.svg"])
]
_FILE = "/v1/runs/{run_id}/files/{path:path}"
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


class _Download(StreamingResponse):
    """A stream whose source is closed with it, also when the client leaves in the middle."""

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # pyright: ignore[reportArgumentType]
            await super().stream_response(send)


@router.get("/v1/runs/{run_id}/files", response_model=FileList)
async def list_files(
    run: OwnRun,
    services: CurrentServices,
    prefix: Annotated[str, Query(description="Only files whose path starts with this.")] = "",
) -> Response:
    """List a run's files by path. Links and special files that a tool made are not among them."""
    with _store_errors():
        files = await _workspace(services, run).list(prefix)
    return answer({"items": [_view(file) for file in files], "next": None})


@router.get(
    _FILE,
    response_class=Response,
    responses={
        200: {"content": _BYTES},
        206: {"description": "The part that `Range` asked for.", "content": _BYTES},
        304: {"description": "`If-None-Match` has the tag of this very state."},
        416: {"description": "The range lies outside of the file."},
    },
)
async def download(run: OwnRun, services: CurrentServices, request: Request, path: FilePath) -> Response:
    """Download a file; a single `Range` is honoured. Types that could run in a browser are attachments."""
    workspace = _workspace(services, run)
    with _store_errors():
        file = await workspace.stat(path)
        if not_modified(file, request.headers.get("If-None-Match")):
            return Response(
                status_code=304, headers={"ETag": etag(file), "Cache-Control": "private, no-cache"}
            )
        try:
            part = byte_range(_range_header(request), file.size)
        except RangeNotSatisfiable as error:
            away = {"Content-Range": f"bytes */{file.size}"}
            return error_answer(error.status, error.code, error.message, away)
        start, end = part or (0, file.size)
        content = await _opened(workspace.read(file.path, start, end))
    extra = {"Content-Length": str(end - start)}
    if part is not None:
        extra["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    return _Download(content, 200 if part is None else 206, headers(file) | extra)


@router.head(_FILE, response_class=Response, include_in_schema=False)
async def describe(run: OwnRun, services: CurrentServices, path: FilePath) -> Response:
    """Describe a file: the headers of its download."""
    with _store_errors():
        file = await _workspace(services, run).stat(path)
    return Response(headers=headers(file) | {"Content-Length": str(file.size)})


@router.put(
    _FILE,
    status_code=201,
    response_model=FileView,
    responses={200: {"model": FileView, "description": "The file was there before and is replaced."}},
    openapi_extra={"requestBody": {"required": True, "content": _BYTES}},
)
async def upload(run: OwnRun, services: CurrentServices, request: Request, path: FilePath) -> Response:
    """Store the raw body as a file, whole or not at all; folders on the way are made."""
    _check_upload(request, services.settings.file_max_bytes)
    workspace = _workspace(services, run)
    with _store_errors():
        fresh = not await _exists(workspace, path)
        try:
            file = await workspace.write(path, request.stream())
        except ClientDisconnect:
            raise InvalidRequest("The connection closed before the whole file had come.") from None
    location = f"/v1/runs/{run.run_id}/files/{quote(file.path)}"
    return answer(_view(file), 201 if fresh else 200, {"Location": location, "ETag": etag(file)})


@router.delete(_FILE, status_code=204, response_class=Response)
async def delete(run: OwnRun, services: CurrentServices, path: FilePath) -> Response:
    """Delete a file."""
    with _store_errors():
        await _workspace(services, run).delete(path)
    return Response(status_code=204)


@router.get(
    "/v1/runs/{run_id}/archive",
    response_class=Response,
    responses={
        200: {"content": {form.media_type: _BYTES["application/octet-stream"] for form in ArchiveFormat}}
    },
)
async def download_archive(
    run: OwnRun,
    services: CurrentServices,
    format: Annotated[ArchiveFormat, Query()] = ArchiveFormat.ZIP,  # noqa: A002 - the parameter's public name
) -> Response:
    """Download all files as one archive, made while it is sent."""
    workspace = _workspace(services, run)
    with _store_errors():
        files = await workspace.list()
    return _Download(
        archive(workspace, files, format),
        headers={
            "Content-Disposition": disposition(f"{run.run_id}.{format}"),
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        },
        media_type=format.media_type,
    )


def _workspace(services: Services, run: Run) -> Workspace:
    """Return the files of a run: its owner's, also when an admin asks."""
    return services.workspaces.open(run.user_id, run.run_id)


def _view(file: FileInfo) -> dict[str, str | int]:
    return {
        "path": file.path,
        "size": file.size,
        "modified_at": format_ts(file.modified_at),
        "content_type": content_type(file.path),
    }


def _range_header(request: Request) -> str | None:
    """Return the wanted range. Our tags are weak, so no `If-Range` holds: such a client gets all."""
    return None if "If-Range" in request.headers else request.headers.get("Range")


async def _opened(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Wait for the first piece, so that what goes wrong at the start is still a proper answer."""
    first = await anext(content, b"")

    async def whole() -> AsyncIterator[bytes]:
        async with aclosing(content):  # pyright: ignore[reportArgumentType]
            yield first
            async for piece in content:
                yield piece

    return whole()


def _check_upload(request: Request, limit: int) -> None:
    if announces_more(request, limit):
        raise TooLarge(f"A file may have at most {limit} bytes (FILE_MAX_BYTES).")
    if "Content-Range" in request.headers:
        raise InvalidRequest("A file is stored whole; send it without Content-Range.")


async def _exists(workspace: Workspace, path: str) -> bool:
    try:
        await workspace.stat(path)
    except NotFound:
        return False
    return True


@contextmanager
def _store_errors() -> Generator[None]:
    """Say what is wrong with the store, where others could only say that something is away."""
    try:
        yield
    except StorageError as error:
        raise Unavailable(str(error), retry_after_s=1) from error
