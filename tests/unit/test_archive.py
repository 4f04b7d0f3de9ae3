"""Archives of files that are not what they were when they were listed."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

import pytest
from starlette.types import Message

from app.core.errors import NotFound, StorageError
from app.routes.files import headers
from app.routes.views import Download
from app.storage.archive import ArchiveFormat, archive
from app.storage.workspace import FileInfo, Workspace

WHEN = 1_790_000_000_000_000
LISTED = [FileInfo(path, 1000, WHEN, executable=False) for path in ("grown", "gone", "shrunk", "same")]


class Changed:
    """A workspace whose files changed after the list."""

    files: dict[str, bytes]

    def __init__(self, **files: bytes) -> None:
        self.files = files

    async def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        if path not in self.files:
            raise NotFound(path)
        content = self.files[path][start:end]
        for at in range(0, len(content), 300):
            yield content[at : at + 300]


async def made(workspace: Any, form: ArchiveFormat, listed: list[FileInfo] = LISTED) -> io.BytesIO:
    pieces = [piece async for piece in archive(cast("Workspace", workspace), listed, form)]
    return io.BytesIO(b"".join(pieces))


CHANGED = Changed(grown=b"g" * 5000, shrunk=b"s" * 700, same=b"x" * 1000)


async def test_a_zip_has_what_is_there_up_to_the_listed_size() -> None:
    with zipfile.ZipFile(await made(CHANGED, ArchiveFormat.ZIP)) as found:
        assert found.testzip() is None
        assert {name: len(found.read(name)) for name in found.namelist()} == {
            "grown": 1000,
            "shrunk": 700,
            "same": 1000,
        }
        assert found.infolist()[0].date_time[0] == 2026


async def test_a_tar_keeps_the_size_that_it_announced() -> None:
    with tarfile.open(fileobj=await made(CHANGED, ArchiveFormat.TAR_GZ), mode="r:gz") as found:
        content = {member.name: cast("Any", found.extractfile(member)).read() for member in found}
    assert content == {"grown": b"g" * 1000, "shrunk": b"s" * 700 + bytes(300), "same": b"x" * 1000}


async def test_a_large_file_that_became_empty_is_filled_up() -> None:
    listed = [FileInfo("big", 1_000_000, WHEN, executable=False), FileInfo("after", 1, 0, executable=False)]
    packed = await made(Changed(big=b"", after=b"x"), ArchiveFormat.TAR_GZ, listed)
    with tarfile.open(fileobj=packed, mode="r:gz") as found:
        assert [(member.name, member.size) for member in found] == [("big", 1_000_000), ("after", 1)]


@pytest.mark.parametrize("form", ArchiveFormat)
async def test_a_store_that_goes_away_breaks_the_archive_off(form: ArchiveFormat) -> None:
    """A short archive must never look like a whole one."""

    class Away(Changed):
        async def read(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
            yield b"x" * 10
            raise StorageError("away")

    with pytest.raises(StorageError):
        await made(Away(), form)


async def test_a_time_before_zip_is_the_first_that_zip_knows() -> None:
    packed = await made(Changed(a=b"x"), ArchiveFormat.ZIP, [FileInfo("a", 1, 0, executable=False)])
    with zipfile.ZipFile(packed) as found:
        assert found.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


YEARS = [-(10**17), -1, 4_102_444_800 * 10**6, 4_400_000_000 * 10**6, 10**19, 10**25]


@pytest.mark.parametrize("when", YEARS)
@pytest.mark.parametrize("form", ArchiveFormat)
async def test_no_time_of_a_file_breaks_an_archive_or_a_header_off(form: ArchiveFormat, when: int) -> None:
    """File systems know more years than zip, HTTP and calendars."""
    listed = [FileInfo("a", 1, when, executable=False), FileInfo("b", 1, WHEN, executable=False)]
    packed = await made(Changed(a=b"x", b=b"y"), form, listed)
    if form is ArchiveFormat.ZIP:
        with zipfile.ZipFile(packed) as found:
            assert found.namelist() == ["a", "b"]
    else:
        with tarfile.open(fileobj=packed, mode="r:gz") as unpacked:
            assert unpacked.getnames() == ["a", "b"]
    assert headers(listed[0])["Last-Modified"].endswith("GMT")


@pytest.mark.parametrize("executable", [True, False])
@pytest.mark.parametrize("form", ArchiveFormat)
async def test_an_archive_keeps_the_executable_bit(form: ArchiveFormat, executable: bool) -> None:
    """Also of a store whose lists do not tell it."""

    class Asked(Changed):
        async def stat(self, path: str) -> FileInfo:
            return FileInfo(path, 1, WHEN, executable=executable)

    for listed in (FileInfo("a", 1, WHEN), FileInfo("a", 1, WHEN, executable=executable)):
        packed = await made(Asked(a=b"x"), form, [listed])
        if form is ArchiveFormat.ZIP:
            mode = zipfile.ZipFile(packed).infolist()[0].external_attr >> 16
        else:
            with tarfile.open(fileobj=packed, mode="r:gz") as unpacked:
                mode = unpacked.getmembers()[0].mode
        assert bool(mode & 0o100) is executable


async def test_a_download_closes_its_source_when_the_client_is_gone() -> None:
    """At once, not when the garbage collector comes by: files and connections are open behind it."""
    closed: list[bool] = []

    async def source() -> AsyncGenerator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closed.append(True)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise ConnectionResetError

    held = source()
    with pytest.raises(ConnectionResetError):
        await Download(held).stream_response(send)
    assert closed == [True]
