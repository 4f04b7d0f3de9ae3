"""Files that a run is given: which local ones it needs, and how they get there before it starts.

What is named and does not go along is told: a link to a folder, an empty folder, a device. Files are
looked at before a run is made, and a run whose files did not all arrive is cancelled, never left held.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tailrun.ansi import one_line
from tailrun.commands.connection import CliError
from tailrun.commands.render import size

if TYPE_CHECKING:
    from tailrun import Client

_SKIPPED = frozenset({".git", ".venv", "__pycache__", "node_modules", ".tailrun"})
_MAX_FILES = 1000
_NAMED = 20


@dataclass(frozen=True, slots=True)
class Upload:
    """A local file and its path in the run's workspace."""

    source: Path
    path: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was named and stays here, and why."""

    source: str
    why: str


def uploads_of(argv: list[str], named: list[Path]) -> list[Upload]:
    """Return what to bring: files below this folder that the command names, and what --with names."""
    found: dict[str, Upload] = {}
    left_out = [*_not_brought(argv, named)]
    for word in argv:
        path = _local_file(word)
        if path is not None:
            found[path] = Upload(Path(word), path)
    for path in named:
        for each in _brought(path):
            if isinstance(each, LeftOut):
                left_out.append(each)
            else:
                found[each.path] = each
    _tell(left_out)
    if len(found) > _MAX_FILES:
        raise CliError(f"{len(found)} files are too many to upload one by one; bring an archive instead", 2)
    return list(found.values())


def submit(client: Client, body: dict[str, Any], uploads: list[Upload], *, quiet: bool) -> dict[str, Any]:
    """Make the run; with files to bring it is held until they are there."""
    _check(uploads)
    made = client.create(**body, start=not uploads)
    run_id = made["run_id"]
    if not uploads:
        _say(f"run {run_id}", quiet=quiet)
        return made
    with cancelled_on_failure(client, run_id):
        _say(f"run {run_id}", quiet=quiet)
        bring(client, run_id, uploads, quiet=quiet)
        return client.start(run_id)


def held_files(client: Client, body: dict[str, Any], uploads: list[Upload], *, quiet: bool) -> str:
    """Keep files without running anything: return the id of a cancelled run that has them."""
    _check(uploads)
    fields = {name: value for name, value in body.items() if name != "webhook_url"}
    run_id: str = client.create(**fields, start=False)["run_id"]
    with cancelled_on_failure(client, run_id):
        bring(client, run_id, uploads, quiet=quiet)
    client.cancel(run_id)
    return run_id


def bring(client: Client, run_id: str, uploads: list[Upload], *, quiet: bool) -> None:
    """Upload files into a run that is held."""
    for upload in uploads:
        stored = client.upload(run_id, upload.path, upload.source)
        _say(f"uploaded {upload.source} as {upload.path} ({size(stored['size'])})", quiet=quiet)


class cancelled_on_failure:  # noqa: N801 - used as a function
    """A run without its files must not wait for good: whatever breaks the block off, it is cancelled."""

    def __init__(self, client: Client, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        from tailrun import TailrunError  # noqa: PLC0415 - `--help` needs none of it

        if kind is not None:
            with suppress(TailrunError):  # what broke it off is what the user has to know
                self._client.cancel(self._run_id)


def _check(uploads: list[Upload]) -> None:
    """Open each file once: one that can't be read, or has a name that is no text, makes no run."""
    for upload in uploads:
        upload.path.encode()
        with upload.source.open("rb"):
            pass


def _say(text: str, *, quiet: bool) -> None:
    if not quiet:
        print(one_line(text), file=sys.stderr)


def _tell(left_out: list[LeftOut]) -> None:
    for each in left_out[:_NAMED]:
        print(one_line(f"not brought along: {each.source}: {each.why}"), file=sys.stderr)
    if len(left_out) > _NAMED:
        print(f"not brought along: {len(left_out) - _NAMED} more", file=sys.stderr)


def _local_file(word: str) -> str | None:
    """Return the workspace path of an argument that is a file below this folder, None if it is none."""
    path = PurePosixPath(os.path.normpath(word)) if word and "\0" not in word else None
    if path is None or path.is_absolute() or ".." in path.parts:
        return None
    try:
        return str(path) if Path(path).is_file() else None
    except OSError:  # a word too long for a name
        return None


def _not_brought(argv: list[str], named: list[Path]) -> Iterator[LeftOut]:
    """Name what the words of a command mean here and what they will not find there."""
    brought = {os.path.normpath(path) for path in named}
    for word in argv:
        path = os.path.normpath(word) if word and "\0" not in word else "."
        if path in brought or path == "." or Path(path).is_absolute():
            continue
        if os.path.isdir(path):  # noqa: PTH112 - a word may be too long for a path
            yield LeftOut(word, f"a folder: --with {word} brings it")
        elif path.startswith("..") and os.path.isfile(path):  # noqa: PTH113
            yield LeftOut(word, f"it is outside of this folder: --with {word} brings it under its name")


def _brought(path: Path) -> Iterator[Upload | LeftOut]:
    if path.is_file():
        yield Upload(path, _local_file(str(path)) or path.name)
        return
    if not path.is_dir():
        what = "is no regular file or folder" if path.exists() else "there is no such file or folder"
        raise CliError(f"--with {path}: {what}", 2)
    inside = PurePosixPath(os.path.normpath(path))
    base = PurePosixPath(path.resolve().name) if inside.is_absolute() or ".." in inside.parts else inside
    for folder, folders, files in os.walk(path, onerror=_raise):
        if not folders and not files:
            yield LeftOut(folder, "an empty folder")
        yield from _folders(folder, folders)
        for name in sorted(files):
            source = Path(folder, name)
            if source.is_file():
                yield Upload(source, str(base / source.relative_to(path).as_posix()))
            else:
                dangling = source.is_symlink() and not source.exists()
                yield LeftOut(str(source), "a link that leads nowhere" if dangling else "no regular file")


def _folders(folder: str, folders: list[str]) -> Iterator[LeftOut]:
    """Name the folders that are not walked into; the others stay in `folders`, in order."""
    for name in sorted(folders):
        if name in _SKIPPED:
            yield LeftOut(str(Path(folder, name)), "never brought along; an archive of it is")
        elif Path(folder, name).is_symlink():
            yield LeftOut(str(Path(folder, name)), "a link to a folder")
    folders[:] = sorted(name for name in folders if name not in _SKIPPED)


def _raise(error: OSError) -> None:
    raise error
