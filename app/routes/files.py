"""The shapes of files in answers: what OpenAPI shows; `app.routes.files` makes them.

How a stored file looks over HTTP: its type, its tag, its ranges, and its chains.

What a tool wrote must never run in the API's origin, with the token that a browser holds
for it. So types are not sniffed, everything is in a sandbox, and only types that a browser
merely shows are shown; the rest is a download.

A run's files over HTTP: list, download, upload, delete, and all of them as one archive.

Content is streamed both ways and never held whole. Uploads and deletions are allowed in
every state of the run: a held run gets its inputs here, and files of a running one may be
looked at and mended.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator, Generator
from contextlib import aclosing, contextmanager
from email.utils import formatdate
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect

from app.core.clock import calendar_second, format_ts
from app.core.errors import InvalidRequest, NotFound, RangeNotSatisfiable, StorageError, TooLarge, Unavailable
from app.core.models import Run
from app.routes.auth import CurrentServices, OwnRun
from app.routes.body import announces_more
from app.routes.errors import error_answer
from app.routes.views import Download, answer
from app.runs.services import Services
from app.storage.archive import ArchiveFormat, archive
from app.storage.workspace import FileInfo, Workspace


class FileView(BaseModel):
    """One file of a run. Size in bytes, time in RFC 3339 with microseconds, in UTC."""

    path: str = Field(examples=["report/chart.svg"])
    size: int
    modified_at: str = Field(examples=["2026-11-20T12:00:00.123456Z"])
    content_type: str = Field(description="Guessed from the name.", examples=["image/svg+xml"])


class FileList(BaseModel):
    """All files of a run, sorted by path."""

    items: list[FileView]
    next: None = None


# The built-in table alone: what a machine has in /etc/mime.types must not change an answer.
_TYPES = mimetypes.MimeTypes()
for _suffix, _type in {
    ".jsonl": "application/x-ndjson",
    ".log": "text/plain",
    ".md": "text/markdown",
    ".ndjson": "application/x-ndjson",
    ".webp": "image/webp",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}.items():
    _TYPES.add_type(_type, _suffix)
_PACKED = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "br": "application/octet-stream",
    "compress": "application/octet-stream",
}
_SHOWN = frozenset(
    {
        *("text/plain", "text/csv", "text/markdown", "text/x-python", "application/json"),
        *("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp"),
        *("audio/mpeg", "audio/x-wav", "video/mp4", "video/webm"),
    }
)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)


def content_type(path: str) -> str:
    """Guess the type from the name; `application/octet-stream` if it says nothing."""
    guess, packed = _TYPES.guess_type("file:" + quote(path))
    if packed is not None:
        return _PACKED.get(packed, "application/octet-stream")
    return guess or "application/octet-stream"


def etag(file: FileInfo) -> str:
    """Return the weak tag of this state of a file."""
    version = f"-{file.version}" if file.version else ""
    return f'W/"{file.size:x}-{file.modified_at:x}{version}"'


def not_modified(file: FileInfo, if_none_match: str | None) -> bool:
    """Whether the client has this state of the file already."""
    if if_none_match is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or etag(file).removeprefix("W/") in tags


def headers(file: FileInfo) -> dict[str, str]:
    """Return the headers of a file's content, whole or in part, but for its length."""
    kind = content_type(file.path)
    return {
        "Content-Type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
        "Content-Disposition": disposition(file.path, inline=kind in _SHOWN),
        "Content-Security-Policy": "sandbox",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
        "Accept-Ranges": "bytes",
        "ETag": etag(file),
        "X-Executable": _executable(file),
        "Last-Modified": formatdate(calendar_second(file.modified_at), usegmt=True),
    }


def _executable(file: FileInfo) -> str:
    """Say it in a header: in S3 a file's own metadata holds it, which no list has."""
    return "true" if file.executable else "false"


def disposition(path: str, *, inline: bool = False) -> str:
    """Return the Content-Disposition with the file's own name, in ASCII and in full (RFC 6266)."""
    name = path.rsplit("/", 1)[-1]
    plain = re.sub(r"[^ !#-\[\]-~]|%", "_", name)
    full = f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else ""
    return f'{"inline" if inline else "attachment"}; filename="{plain}"{full}'


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the wanted bytes as start and end (exclusive), or None for all.

    As RFC 9110 wants it, what is not understood (several ranges, other units) is ignored.

    Raises:
        RangeNotSatisfiable: the range lies outside of the file.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group(1, 2) == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if first and last and int(last) < int(first):
        return None
    if start >= end:
        raise RangeNotSatisfiable(f"The file has {size} bytes; ask for a range within them.")
    return start, end


router = APIRouter(tags=["files"])

FilePath = Annotated[
    str, Path(description="The file's path within the workspace.", examples=["report/chart.svg"])
]


class _AnyName(Convertor[str]):
    """The rest of a path whatever is in it, line ends too: what can't be a name is refused with a reason."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """Take it as it is."""
        return value

    def to_string(self, value: str) -> str:
        """Put it into a path as it is."""
        return value


register_url_convertor("name", _AnyName())
_FILE = "/v1/runs/{run_id}/files/{path:name}"
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


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
    return Download(content, 200 if part is None else 206, headers(file) | extra)


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
async def upload(
    run: OwnRun,
    services: CurrentServices,
    request: Request,
    path: FilePath,
    executable: Annotated[
        bool | None, Query(description="Whether it may be run; left out: as the file that it replaces.")
    ] = None,
) -> Response:
    """Store the raw body as a file, whole or not at all; folders on the way are made."""
    _check_upload(request, services.settings.storage.file_max_bytes)
    workspace = _workspace(services, run)
    with _store_errors():
        fresh = not await _exists(workspace, path)
        try:
            file = await workspace.write(path, request.stream(), executable=executable)
        except ClientDisconnect:
            raise InvalidRequest("The connection closed before the whole file had come.") from None
    location = f"/v1/runs/{run.run_id}/files/{quote(file.path)}"
    about = {"Location": location, "ETag": etag(file), "X-Executable": _executable(file)}
    return answer(_view(file), 201 if fresh else 200, about)


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
    return Download(
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
