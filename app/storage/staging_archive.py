"""Both ends of the staged archives, whichever store carries them: what goes in, what comes out.

The format is `toolbox.archive`, which the pod uses as well. What a pod sends is verified here
again, by the limits of the workspace and the rules for paths: it was made beside untrusted code.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import orjson

from app.core.errors import Conflict, StorageError, TailrunError, TooLarge, Unprocessable
from app.core.names import is_normal, is_text, normalise
from app.core.private_files import private_folder
from app.storage.scratch import Scratch, purge
from app.storage.staging import Collected, UploadRefused
from app.storage.threads import Threads
from app.storage.tree import TreeEntry, open_file, opened_folder, snapshot
from app.storage.workspace import BareTree, Checkout, FileInfo, Workspace, WorkspaceLimits
from toolbox.archive import Damaged, Entry, Packer, Read, Refused, entries
from toolbox.archive import Limits as ArchiveLimits
from toolbox.tree import TREE, SentTree

_MANIFEST = "manifest.json"
_MANIFEST_BYTES = 16_000_000
_NAMED = 1_000  # as in the pod
_FOLDERS = 50_000  # that the pod looks at, besides as many as there may be files
_NAME_CHARS = 1_024
_HEADERS_BYTES = 4_096  # per file: what its headers take where they don't compress


def largest_upload(limits: WorkspaceLimits) -> int:
    """Return how many bytes a pod may send: everything allowed, none of it compressible."""
    return limits.total_bytes + limits.files * _HEADERS_BYTES + _MANIFEST_BYTES


def pod_limits(limits: WorkspaceLimits) -> dict[str, int]:
    """Return the limits for `sync.json`."""
    return {"files": limits.files, "bytes": limits.total_bytes, "file_bytes": limits.file_bytes}


@dataclass(slots=True)
class Returned:
    """The manifest of an upload."""

    removed: set[str] = field(default_factory=set[str])
    skipped: list[str] = field(default_factory=list[str])
    failure: TailrunError | None = None
    tree: BareTree | None = None


class Archives:
    """Packs and unpacks in threads, with temporary files in `scratch`."""

    def __init__(self, scratch: Scratch, threads: Threads, limits: WorkspaceLimits) -> None:
        self.scratch = scratch
        self.threads = threads
        self.limits = limits

    async def pack(self, workspace: Workspace, source: Mapping[str, bytes], out: IO[bytes]) -> None:
        """Write the archive for a pod to `out`; raises as `Staging.offer`."""
        named = {normalise(name): content for name, content in source.items()}
        stop = threading.Event()
        async with workspace.read_only() as folder:
            await self.threads.run(_pack, folder, named, out, stop, on_cancel=stop.set)

    async def take_in(self, read: Read, workspace: Workspace) -> Collected:
        """Unpack what `read` gives, whole and verified, then hand it to `workspace`."""
        async with self.threads.opened(self._folder, purge) as folder:
            returned = await self.threads.run(_unpack, read, folder, self.limits)
            checkout, failure = Checkout(folder, []), returned.failure
            try:
                await workspace.take_in(checkout, returned.removed, returned.tree)
            except (TooLarge, Conflict, Unprocessable) as error:
                failure = failure or error
        skipped = sorted({*returned.skipped, *checkout.skipped})
        return Collected(sorted(checkout.changed, key=_path), skipped, failure)

    def spool(self) -> IO[bytes]:
        """Open a temporary file without a name."""
        with disk():
            return tempfile.TemporaryFile(dir=self.scratch.folder())

    def _folder(self) -> Path:
        with disk():
            return Path(tempfile.mkdtemp(dir=self.scratch.folder()))


# Blocking from here on.


@contextlib.contextmanager
def disk() -> Generator[None]:
    """Turn an OSError of the disk into the error of a store."""
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error


def disk_error(error: OSError) -> StorageError:
    """Return the error of a store whose disk raised `error`."""
    return StorageError(f"Staged files can't be written or read: {error.strerror}.")


def _pack(folder: Path, source: Mapping[str, bytes], out: IO[bytes], stop: threading.Event) -> None:
    packer = Packer(out.write)
    with disk():
        found = snapshot(folder)
        for path in sorted(found.files):
            if stop.is_set():
                return
            _pack_file(packer, folder, path)
        for name, content in source.items():
            packer.add_bytes(f"source/{name}", content)
        folders = found.bare_folders()
        if folders or found.links:  # else none, for a toolbox of an earlier release
            packer.add_bytes(TREE, orjson.dumps({"folders": folders, "links": found.links}))
        packer.close()


def _pack_file(packer: Packer, folder: Path, path: str) -> None:
    *folders, name = path.split("/")
    try:
        with opened_folder(folder, folders) as parent:
            file = os.fdopen(open_file(parent, name), "rb")
    except (FileNotFoundError, PermissionError):
        return  # deleted over HTTP since we looked, or a tool took the permission away
    with file:
        found = TreeEntry.of(os.fstat(file.fileno()))
        packer.add(Entry(f"workspace/{path}", found.size, found.mtime_ns, found.mode), file.read)


def _unpack(read: Read, folder: Path, limits: WorkspaceLimits) -> Returned:
    """Unpack into `folder`, which is empty and ours; `UploadRefused` if anything is not as it must be."""
    bounds = ArchiveLimits(
        limits.files + 1,
        limits.total_bytes + _MANIFEST_BYTES,
        max(limits.file_bytes, _MANIFEST_BYTES),
    )
    try:
        return _unpack_all(entries(read, bounds), folder, limits)
    except (Damaged, Refused) as error:
        raise UploadRefused(f"What the tool's pod sent back was refused: {error}.") from None


def _unpack_all(
    found: Iterator[tuple[Entry, Iterator[bytes]]], folder: Path, limits: WorkspaceLimits
) -> Returned:
    returned: Returned | None = None
    odd: list[str] = []
    folders = set[int]()
    for entry, content in found:
        if returned is not None:
            raise Refused("something follows its manifest")
        if entry.path == _MANIFEST:
            if entry.size > _MANIFEST_BYTES:
                raise Refused("its manifest is too long")
            returned = _manifest(b"".join(content), limits)
            continue
        if _unpack_file(entry, content, folder, limits):
            _count_folders(entry.path, folders, limits)
        elif len(odd) < _NAMED:
            odd.append(entry.path.partition("/")[2])
    if returned is None:
        raise Damaged("its manifest is missing")
    returned.skipped.extend(_named(odd))
    return returned


def _count_folders(path: str, folders: set[int], limits: WorkspaceLimits) -> None:
    """Refuse an archive whose few files are in too many folders, which are counted by their hashes."""
    while path := path.rpartition("/")[0]:
        if hash(path) in folders:
            return
        folders.add(hash(path))
        if len(folders) > limits.files + _FOLDERS:
            raise Refused("it has more folders than there can be")


def _unpack_file(entry: Entry, content: Iterator[bytes], folder: Path, limits: WorkspaceLimits) -> bool:
    """Write a file; return whether a workspace can hold its name."""
    top, _, path = entry.path.partition("/")
    if top != "workspace" or not path:
        raise Refused(f"{entry.path[:200]!a} belongs nowhere")
    if entry.size > limits.file_bytes:
        raise Refused(f"{path[:200]!a} is over the limit for one file")
    if not is_normal(path):
        return False
    target = folder / path
    try:
        private_folder(target.parent)
        with target.open("xb") as file:
            for piece in content:
                file.write(piece)
        os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))
        target.chmod(entry.mode)
    except (FileExistsError, NotADirectoryError):
        raise Refused(f"{path[:200]!a} is there twice, or in the way of another") from None
    except OSError as error:
        raise StorageError(f"Files of a tool can't be written: {error.strerror}.") from error
    return True


def _manifest(data: bytes, limits: WorkspaceLimits) -> Returned:
    _expect_few(data, limits)
    try:
        manifest = orjson.loads(data)
        removed, skipped, refused, whole = (
            manifest[key] for key in ("removed", "skipped", "refused", "whole")
        )
        if len(removed) > limits.files:
            raise Refused("it removes more files than there can be")
        if max(len(skipped), len(refused)) > _NAMED:
            raise Refused(f"it names more than {_NAMED} files that stayed behind")
        gone = {path for path in map(_text, removed) if is_normal(path)}
        names = _named(map(_text, skipped))
        over = [(_text(path), int(size)) for path, size in refused]
        tree = _tree(manifest["tree"], limits) if "tree" in manifest else None
    except (ArithmeticError, KeyError, TypeError, ValueError):
        raise Refused("its manifest is malformed") from None
    return Returned(gone, names, _over(over, limits, whole=whole is True), tree)


def _tree(said: Any, limits: WorkspaceLimits) -> BareTree:
    """Return what a workspace can hold of the folders and links that came back."""
    sent = SentTree.read(said)
    if len(sent.folders) + len(sent.links) > limits.files + 2:
        raise Refused("it has more links and folders than there can be")
    links = {path: target for path, target in sent.links.items() if is_normal(path) and is_text(target)}
    return BareTree(tuple(filter(is_normal, sent.folders)), links)


def _expect_few(data: bytes, limits: WorkspaceLimits) -> None:
    """Refuse a manifest of more values than there can be, before a parser makes an object of each.

    Counted are the quotes, and the commas, brackets and braces outside of them; two passes of
    the C library, whatever was sent.
    """
    most = 3 * limits.files + 4 * _NAMED + 32
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * most:
        raise Refused("its manifest has more entries than there can be")
    outside = b"".join(plain.split(b'"')[::2])
    if sum(outside.count(each) for each in (b",", b"[", b"{")) > most:
        raise Refused("its manifest has more entries than there can be")


def _over(refused: list[tuple[str, int]], limits: WorkspaceLimits, *, whole: bool) -> TooLarge | None:
    """Return the error of what the pod did not even send."""
    if not whole:
        return TooLarge(
            f"The tool left far more than {limits.files} files and folders (WORKSPACE_MAX_FILES); "
            "some were not looked at."
        )
    if not refused:
        return None
    path, size = refused[0]
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    return TooLarge(
        f"{_named([path])[0]}{more}: with its {size} bytes it is over a limit: {limits.file_bytes} bytes for "
        f"one file (FILE_MAX_BYTES), {limits.total_bytes} for all (WORKSPACE_MAX_BYTES), "
        f"{limits.files} files (WORKSPACE_MAX_FILES)."
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _named(names: Iterable[str]) -> list[str]:
    """Return names as they may be shown, some of them if there are many."""
    return [name[:_NAME_CHARS].encode(errors="backslashreplace").decode() for name in islice(names, _NAMED)]


def _path(file: FileInfo) -> str:
    return file.path
