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
from dataclasses import replace
from enum import StrEnum
from typing import IO, TypeVar, TypeVarTuple, cast

import anyio.to_thread

from app.core.clock import calendar_second
from app.core.errors import Conflict, NotFound, Unprocessable
from app.storage.workspace import FileInfo, Workspace
from tailrun.process.aio import run_to_completion

T = TypeVar("T")
Args = TypeVarTuple("Args")

_FIRST, _LAST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)
"""The times that a zip archive can hold."""
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


class _ArchiveBuffer:
    """The file that `zipfile` writes into: a pipe that can't seek, emptied after every piece."""

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
    sink = _ArchiveBuffer()
    # Not a `with`: closing writes the directory, which an archive that broke off must not have.
    out = zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_DEFLATED)
    for listed in files:
        async with aclosing(_content(workspace, listed)) as content:
            if (piece := await anext(content, None)) is None:
                continue
            file = await _whole(workspace, listed)
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
    for listed in files:
        async with aclosing(_content(workspace, listed)) as content:
            if (piece := await anext(content, None)) is None:
                continue
            file = await _whole(workspace, listed)
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


async def _whole(workspace: Workspace, file: FileInfo) -> FileInfo:
    """Return the file as it was listed, with what only its store's own word tells."""
    if file.executable is not None:
        return file
    try:
        return replace(file, executable=(await workspace.stat(file.path)).executable)
    except (NotFound, Unprocessable, Conflict):
        return file  # gone since it was opened; what is open is sent


async def _zeros(count: int) -> AsyncIterator[bytes]:
    """Fill up to the size that the header promised; `count` is huge where a large file was cut short."""
    block = bytes(tarfile.BLOCKSIZE * 128)
    while count > 0:
        yield block[:count]
        count -= len(block)


def _zip_header(file: FileInfo) -> zipfile.ZipInfo:
    moment = time.gmtime(calendar_second(file.modified_at))[:6]
    header = zipfile.ZipInfo(file.path, min(max(moment, _FIRST), _LAST))
    header.compress_type = zipfile.ZIP_DEFLATED
    header.create_system = 3  # Unix, so that the mode below counts
    header.external_attr = (0o100000 | _mode(file)) << 16
    return header


def _tar_header(file: FileInfo) -> bytes:
    header = tarfile.TarInfo(file.path)
    header.size = file.size
    header.mtime = calendar_second(file.modified_at)
    header.mode = _mode(file)
    return header.tobuf(tarfile.PAX_FORMAT)


def _mode(file: FileInfo) -> int:
    return 0o755 if file.executable else 0o644


async def _in_thread(call: Callable[[*Args], T], *args: *Args) -> T:
    """Compress away from the event loop; a cancelled archive waits for its thread."""
    return await run_to_completion(anyio.to_thread.run_sync(call, *args))
