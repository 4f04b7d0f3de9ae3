"""A workspace as one archive, made while it is sent: zip or tar.gz, in bounded memory.

No file is held whole, and nothing is written to disk. A file that was deleted meanwhile is
left out; one that still grows is cut at the size it was listed with.
"""

from __future__ import annotations

import tarfile
import time
import zipfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from enum import StrEnum
from typing import IO, TypeVar, TypeVarTuple, cast

import anyio.to_thread

from app.core.errors import Conflict, NotFound, Unprocessable
from app.storage.workspace import FileInfo, Workspace
from tailrun.process.aio import run_to_completion

T = TypeVar("T")
Args = TypeVarTuple("Args")

_MODE = 0o644
_FIRST_ZIP_YEAR = 1980
_ZIP32_BYTES = 1 << 31
_GZIP = 31  # zlib's window size, plus 16 for a gzip header


class ArchiveFormat(StrEnum):
    """The kinds of archive that can be asked for."""

    ZIP = "zip"
    TAR_GZ = "tar.gz"

    @property
    def media_type(self) -> str:
        return "application/zip" if self is ArchiveFormat.ZIP else "application/gzip"


def archive(
    workspace: Workspace, files: Sequence[FileInfo], form: ArchiveFormat
) -> AsyncGenerator[bytes, None]:
    """Yield an archive of `files`, which a list of `workspace` gave."""
    return _zip(workspace, files) if form is ArchiveFormat.ZIP else _tar_gz(workspace, files)


class _Sink:
    """What `zipfile` writes into: a pipe that can't seek, emptied after every piece."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._waiting.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing; `zipfile` asks for it."""

    def take(self) -> bytes:
        data = b"".join(self._waiting)
        self._waiting.clear()
        return data


async def _zip(workspace: Workspace, files: Sequence[FileInfo]) -> AsyncGenerator[bytes, None]:
    sink = _Sink()
    # Not a `with`: closing writes the directory, which an archive that broke off must not have.
    out = zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_DEFLATED)
    for file in files:
        async with aclosing(_content(workspace, file)) as content:
            if (piece := await anext(content, None)) is None:
                continue
            with out.open(_zip_header(file), "w", force_zip64=file.size >= _ZIP32_BYTES) as entry:
                while piece is not None:
                    await _in_thread(entry.write, piece)
                    yield sink.take()
                    piece = await anext(content, None)
        yield sink.take()
    out.close()
    yield sink.take()


async def _tar_gz(workspace: Workspace, files: Sequence[FileInfo]) -> AsyncGenerator[bytes, None]:
    gzip = zlib.compressobj(wbits=_GZIP)
    for file in files:
        async with aclosing(_content(workspace, file)) as content:
            if (piece := await anext(content, None)) is None:
                continue
            yield gzip.compress(_tar_header(file))
            sent = 0
            while piece is not None:
                sent += len(piece)
                yield await _in_thread(gzip.compress, piece)
                piece = await anext(content, None)
            async for filler in _zeros(file.size - sent + -file.size % tarfile.BLOCKSIZE):
                yield gzip.compress(filler)
    yield gzip.compress(bytes(2 * tarfile.BLOCKSIZE)) + gzip.flush()


async def _content(workspace: Workspace, file: FileInfo) -> AsyncGenerator[bytes, None]:
    """Yield an empty piece once the file is open, then its content; nothing if it is gone."""
    reader = workspace.read(file.path, 0, file.size)
    try:
        first = await anext(reader, b"")
    except (NotFound, Unprocessable, Conflict):
        return  # deleted, or a tool put something else there, after the list
    yield b""
    yield first
    async for piece in reader:
        yield piece


async def _zeros(count: int) -> AsyncIterator[bytes]:
    """Fill up to the size that the header promised; `count` is huge where a large file was cut short."""
    block = bytes(tarfile.BLOCKSIZE * 128)
    while count > 0:
        yield block[:count]
        count -= len(block)


def _zip_header(file: FileInfo) -> zipfile.ZipInfo:
    moment = time.gmtime(file.modified_at // 1_000_000)[:6]
    header = zipfile.ZipInfo(file.path, max(moment, (_FIRST_ZIP_YEAR, 1, 1, 0, 0, 0)))
    header.compress_type = zipfile.ZIP_DEFLATED
    header.create_system = 3  # Unix, so that the mode below counts
    header.external_attr = (0o100000 | _MODE) << 16
    return header


def _tar_header(file: FileInfo) -> bytes:
    header = tarfile.TarInfo(file.path)
    header.size = file.size
    header.mtime = file.modified_at // 1_000_000
    header.mode = _MODE
    return header.tobuf(tarfile.PAX_FORMAT)


async def _in_thread(call: Callable[[*Args], T], *args: *Args) -> T:
    """Compress away from the event loop; a cancelled archive waits for its thread."""
    return await run_to_completion(anyio.to_thread.run_sync(call, *args))
