"""Files of tool pods, carried by the API where there is no S3: one archive down, one up.

For `toolbox sync` alone. A pod has no token of a user; it has one that opens one archive in one
direction for a while, in a header. Whatever is wrong, with the token, the key or the time, is
the same 404. Bodies are streamed from and to the disk, and bounded.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from typing import IO, Annotated

from fastapi import APIRouter, Path, Request, Response, Security
from fastapi.security import APIKeyHeader
from starlette.requests import ClientDisconnect

from app.core.errors import InvalidRequest, NotFound, TooLarge
from app.routes.auth import CurrentServices
from app.routes.body import announces_more
from app.routes.views import Download
from app.storage.api_staging import TOKEN_HEADER, Part, StagedFiles, Way
from app.storage.factory import staged_files, workspace_limits
from app.storage.staging_archive import largest_upload
from app.storage.threads import Threads
from app.storage.workspace import PIECE, merged

router = APIRouter(tags=["staging"])

_PATH = "/v1/staging/{key}"
_GZIP = {"application/gzip": {"schema": {"type": "string", "format": "binary"}}}
_threads = Threads()

Key = Annotated[str, Path(description="The tool pod's key.", examples=["tool-1f0c7d9a2b3e4f50"])]
_token = APIKeyHeader(
    name=TOKEN_HEADER, scheme_name="staging", description="From the pod's Secret.", auto_error=False
)
Token = Annotated[str | None, Security(_token)]


@router.get(_PATH, response_class=Response, responses={200: {"content": _GZIP}})
async def fetch(key: Key, services: CurrentServices, token: Token) -> Response:
    """Give the pod its workspace and its sources."""
    staged = staged_files(services.settings.data)
    await _check(staged, token, key, Way.DOWN)
    file = await _threads.run(staged.open, key, Way.DOWN)
    size = os.fstat(file.fileno()).st_size
    headers = {"Content-Length": str(size), "Cache-Control": "no-store"}
    return Download(_content(file), headers=headers, media_type="application/gzip")


@router.put(
    _PATH,
    status_code=204,
    response_class=Response,
    openapi_extra={"requestBody": {"required": True, "content": _GZIP}},
)
async def store(key: Key, services: CurrentServices, request: Request, token: Token) -> Response:
    """Take what the tool left in its workspace; a second upload replaces the first."""
    staged = staged_files(services.settings.data)
    await _check(staged, token, key, Way.UP)
    limit = largest_upload(workspace_limits(services.settings.storage))
    if announces_more(request, limit):
        raise _too_large(limit)
    async with _threads.opened(staged.begin, Part.discard, key, Way.UP) as part:
        size = 0
        try:
            async for piece in merged(request.stream()):
                size += len(piece)
                if size > limit:
                    raise _too_large(limit)
                await _threads.run(part.write, piece)
        except ClientDisconnect:
            raise InvalidRequest("The connection closed before the whole archive had come.") from None
        await _threads.run(part.finish)
    return Response(status_code=204)


async def _check(staged: StagedFiles, token: str | None, key: str, way: Way) -> None:
    if not await _threads.run(staged.opens, token or "", key, way):
        raise NotFound("There is nothing of that name.")


async def _content(file: IO[bytes]) -> AsyncGenerator[bytes]:
    try:
        while piece := await _threads.run(file.read, PIECE):
            yield piece
    finally:
        file.close()


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"An archive may have at most {limit} bytes.")
