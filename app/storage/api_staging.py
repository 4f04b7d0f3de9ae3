"""Staging without a store of objects: files in the data folder, and the API carries them to the pods.

For a cluster whose API and worker share a volume. The pods reach the API at `TOOL_SYNC_URL`.

Staged archives as files, `<root>/<key>/in.tar.gz` and `out.tar.gz`, and who may have them.

Shared by the worker, which offers, and by the API, which serves: both see the same folder. What
they also share is a secret in it, from which a token is derived for one key, one direction and a
limited time; nothing is stored for a token, so none can be left behind. Blocking.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import IO, NamedTuple

from app.core.clock import now_us
from app.core.errors import Conflict, NotFound
from app.core.private_files import private_folder
from app.storage.local_workspace import LocalWorkspaces
from app.storage.scratch import purge
from app.storage.staging import KEY, Collected, Offer, UploadMissing, checked_key
from app.storage.staging_archive import Archives, disk, disk_error, pod_limits
from app.storage.workspace import Workspace

TOKEN_HEADER = "Tailrun-Staging-Token"  # noqa: S105 - the header's name


class ApiStaging:
    """Stages archives as files; `url` is the API as pods see it."""

    def __init__(self, workspaces: LocalWorkspaces, files: StagedFiles, url: str) -> None:
        self._threads = workspaces.threads
        self._archives = Archives(workspaces.scratch, workspaces.threads, workspaces.limits)
        self._files = files
        self._url = url.rstrip("/")

    async def offer(
        self, key: str, workspace: Workspace, source: Mapping[str, bytes], *, lifetime_s: float
    ) -> Offer:
        """Write the archive and derive a token for each way."""
        await self._threads.run(self._files.make, checked_key(key))
        async with self._threads.opened(self._files.begin, Part.discard, key, Way.DOWN) as part:
            await self._archives.pack(workspace, source, part.file)
            await self._threads.run(part.finish)
        tokens = {way: await self._threads.run(self._files.token, key, way, lifetime_s) for way in Way}
        url = f"{self._url}/v1/staging/{key}"
        return Offer(
            {"url": url, "headers": {TOKEN_HEADER: tokens[Way.DOWN]}},
            {"url": url, "headers": {TOKEN_HEADER: tokens[Way.UP]}, "method": "PUT"},
            pod_limits(self._archives.limits),
            now_us() + round(lifetime_s * 1e6),
        )

    async def collect(self, key: str, workspace: Workspace) -> Collected:
        """Unpack the file."""
        try:
            async with self._threads.opened(self._files.open, _close, checked_key(key), Way.UP) as file:
                return await self._archives.take_in(file.read, workspace)
        except NotFound:
            raise UploadMissing("The tool's pod sent no files back.") from None

    async def drop(self, key: str) -> None:
        """Remove both files."""
        await self._threads.run(self._files.drop, checked_key(key))

    async def sweep(self, older_than_s: float) -> int:
        """Remove what is older."""
        return await self._threads.run(self._files.sweep, older_than_s)


def _close(file: IO[bytes]) -> None:
    file.close()


_SECRET_BYTES = 32
_PART = ".part-"


class Way(StrEnum):
    """Which of a key's two archives; its value is the file's name."""

    DOWN = "in.tar.gz"
    UP = "out.tar.gz"


class Part(NamedTuple):
    """An archive that is still being written, beside its final place."""

    file: IO[bytes]
    path: Path
    target: Path

    def write(self, piece: bytes) -> None:
        """Append; `Conflict` if a later archive of the same way has begun meanwhile."""
        with disk():
            self.file.write(piece)
            if os.fstat(self.file.fileno()).st_nlink == 0:
                self.file.truncate(0)
                raise Conflict("A later archive took the place of this one.", code="superseded")

    def finish(self) -> None:
        """Rename it to its final path; `NotFound` if its key was dropped meanwhile."""
        with disk():
            self.file.close()
            try:
                self.path.rename(self.target)
            except FileNotFoundError:
                raise _nothing() from None

    def discard(self) -> None:
        """Close it, and remove it unless it is finished."""
        with contextlib.suppress(OSError):  # of a full disk, which was reported before
            self.file.close()
        self.path.unlink(missing_ok=True)


class StagedFiles:
    """The archives below `root`. Files appear whole or not at all."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._secret = self._root / ".secret"

    def make(self, key: str) -> None:
        """Make the place of a key; without one nothing can be uploaded. What had come up is removed."""
        with disk():
            private_folder(self._root / key)
            (self._root / key / Way.UP).unlink(missing_ok=True)

    def begin(self, key: str, way: Way) -> Part:
        """Begin an archive; `NotFound` if its key has no place.

        One is begun at a time: what another was writing is emptied and removed, however many
        connections bring the same token, and whether or not their processes still live.
        """
        place, prefix = self._root / key, f"{_PART}{way}-"
        try:
            fd, name = tempfile.mkstemp(dir=place, prefix=prefix)
        except FileNotFoundError:
            raise _nothing() from None
        except OSError as error:
            raise disk_error(error) from error
        part = Part(os.fdopen(fd, "wb"), Path(name), place / way)
        try:
            with disk():
                for other in place.glob(f"{prefix}*"):
                    if other != part.path:
                        _empty(other)
        except BaseException:
            part.discard()
            raise
        return part

    def open(self, key: str, way: Way) -> IO[bytes]:
        """Open an archive; `NotFound` if there is none."""
        try:
            return (self._root / key / way).open("rb")
        except FileNotFoundError:
            raise _nothing() from None

    def drop(self, key: str) -> None:
        """Remove the place of a key with all that is in it."""
        with disk(), contextlib.suppress(FileNotFoundError):
            purge(self._root / key)

    def sweep(self, older_than_s: float) -> int:
        """Drop each key in whose place nothing has happened for so long, by the clock of the file system."""
        with disk():
            places = [path for path in self._root.glob("*") if KEY.fullmatch(path.name)]
            before = self._time_there() - older_than_s if places else 0.0
        old = [path for path in places if _last_touched(path) < before]
        for path in old:
            self.drop(path.name)
        return len(old)

    def token(self, key: str, way: Way, lifetime_s: float) -> str:
        """Return a token that opens one archive in one direction for a while."""
        expires = now_us() // 1_000_000 + int(lifetime_s)
        return f"{expires}.{self._mac(self._shared_secret(), key, way, expires)}"

    def opens(self, token: str, key: str, way: Way) -> bool:
        """Whether `token` is good for that now; whatever is wrong with it is just a no."""
        expires, _, mac = token.partition(".")
        if not (KEY.fullmatch(key) and expires.isdecimal() and len(expires) < 16 and expires.isascii()):  # noqa: PLR2004
            return False
        try:
            secret = self._secret.read_bytes()
        except OSError:
            return False  # nothing was ever offered here
        expected = self._mac(secret, key, way, int(expires))
        return hmac.compare_digest(mac.encode(), expected.encode()) and now_us() < int(expires) * 1_000_000

    def _shared_secret(self) -> bytes:
        """Return the secret; the first caller makes it, and others see it only when it is complete."""
        with disk():
            private_folder(self._root)
            if not self._secret.exists():
                fd, name = tempfile.mkstemp(dir=self._root, prefix=_PART)
                with os.fdopen(fd, "wb") as file:
                    file.write(secrets.token_bytes(_SECRET_BYTES))
                with contextlib.suppress(FileExistsError):
                    os.link(name, self._secret)
                Path(name).unlink()
            return self._secret.read_bytes()

    def _time_there(self) -> float:
        with tempfile.TemporaryFile(dir=self._root, prefix=_PART) as file:
            return os.fstat(file.fileno()).st_mtime

    @staticmethod
    def _mac(secret: bytes, key: str, way: Way, expires: int) -> str:
        return hmac.new(secret, f"staging\n{key}\n{way}\n{expires}".encode(), hashlib.sha256).hexdigest()


def _empty(path: Path) -> None:
    """Remove a file whose writer may still hold it open: what it holds goes now, not with the writer."""
    with contextlib.suppress(FileNotFoundError):
        os.truncate(path, 0)
        path.unlink()


def _last_touched(folder: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    return float("inf")


def _nothing() -> NotFound:
    return NotFound("There is nothing of that name.")
