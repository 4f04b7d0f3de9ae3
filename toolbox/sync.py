"""`toolbox sync`: the container beside the tool that brings its workspace down, and back.

A native sidecar, the only container that mounts the addresses. It outlives the tool however that
ended, gets SIGTERM then, and uploads what changed within a bounded time. Should it be restarted
meanwhile (its memory, its node's mood), it must not bring the files down again over the tool's
work: what it found at the start is in the shared folder, beside `ready`.

    sync.json ──> download ──> baseline, ready ──> SIGTERM ──> compare, pack ──> upload
                     └─> failed, with the reason
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

from toolbox.archive import Entry, Limits, Packer, Read, Refused, entries
from toolbox.settings import seconds
from toolbox.transfer import TransferFailed, download, upload
from toolbox.tree import TREE, Changes, Found, SentTree, compare, recreate, scan

MANIFEST = "manifest.json"
"""The last file of what goes up; without it the archive is not whole."""

_SOURCE = Limits(1_000, 64_000_000, 64_000_000)  # beside the workspace: what the tool is to run
_TERMINATION_LOG = Path("/dev/termination-log")
_DOWNLOAD_S, _UPLOAD_S = 120.0, 60.0
_STOPS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """The pod ends before there is anything to bring back."""


class Failed(Exception):
    """The files are not there, or did not get back; the message may be shown."""


class Places(NamedTuple):
    """Where things are in the pod; `TOOLBOX_CWD`, `TOOLBOX_WAIT` and `TOOLBOX_SECRET` move them."""

    workspace: Path
    shared: Path
    secret: Path

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Places:
        """Take the places from `env`."""
        return cls(
            Path(env.get("TOOLBOX_CWD") or "/workspace"),
            Path(env.get("TOOLBOX_WAIT") or "/tailrun/ready").parent,
            Path(env.get("TOOLBOX_SECRET") or "/run/tailrun/sync.json"),
        )


class Task(NamedTuple):
    """The content of `sync.json`."""

    down: Mapping[str, Any]
    up: Mapping[str, Any]
    limits: Limits

    @classmethod
    def read(cls, file: Path) -> Task:
        """Read it; `Failed` where it is missing or malformed."""
        try:
            body = json.loads(file.read_bytes())
            limits = body["limits"]
            size = int(limits["bytes"])
            return cls(
                dict(body["down"]),
                dict(body["up"]),
                Limits(int(limits["files"]), size, int(limits.get("file_bytes", size))),
            )
        except OSError as error:
            raise Failed(f"no sync.json: {error.strerror}") from None
        except (KeyError, TypeError, ValueError):
            raise Failed("sync.json is malformed") from None


def main() -> int:
    """Bring the files down, wait, bring back what changed; return the exit code."""
    places = Places.read(os.environ)
    stop = _Stop(held=(places.shared / "ready").exists())
    try:
        task = Task.read(places.secret)
        before = _bring_down(task, places, stop)
        stop.wait()
        _bring_back(task, places, before)
    except Stopped:
        _say("stopped", m="the pod ended before its workspace was there")
    except (Failed, TransferFailed, Refused, ValueError) as error:
        return _fail(places, str(error))
    except OSError as error:
        return _fail(places, f"{error.strerror or type(error).__name__}: {error.filename}")
    return 0


class _Stop:
    """SIGTERM and SIGINT: they break off the way down, and start the way back."""

    def __init__(self, *, held: bool) -> None:
        if held:
            self.hold()
        for number in _STOPS:
            signal.signal(number, self._break_off)

    def _break_off(self, _number: int, _frame: FrameType | None) -> None:
        raise Stopped

    def hold(self) -> None:
        """Keep signals for `wait`: from now on there may be something to bring back."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)

    def wait(self) -> None:
        """Wait for the end of the tool; further signals change nothing."""
        self.hold()
        signal.sigwait(_STOPS)


def _bring_down(task: Task, places: Places, stop: _Stop) -> dict[str, Found]:
    """Return what was in the workspace when the tool started, or may start now."""
    baseline, ready, failed = (places.shared / name for name in ("baseline.json", "ready", "failed"))
    if failed.exists():
        raise Failed(failed.read_text(errors="replace"))
    if ready.exists():
        _say("resumed")
        return {path: Found(*found) for path, found in json.loads(baseline.read_bytes()).items()}
    began = time.monotonic()
    patience_s = seconds(dict(os.environ), "TOOLBOX_DOWNLOAD_S", _DOWNLOAD_S)
    files, size = download(task.down, lambda read: _unpack(read, task.limits, places), patience_s)
    found = scan(str(places.workspace), task.limits).files
    _write(baseline, json.dumps(found).encode())
    stop.hold()
    _write(ready, b"")
    _say("synced", files=files, bytes=size, ms=_since(began))
    return found


def _unpack(read: Read, limits: Limits, places: Places) -> tuple[int, int]:
    """Unpack into the workspace and the source folder; return how many files and bytes."""
    tops = {"workspace": places.workspace, "source": places.shared / "source"}
    both = Limits(*(ours + more for ours, more in zip(limits, _SOURCE, strict=True)))
    files = size = 0
    tree = SentTree([], {})
    for entry, content in entries(read, both):
        if entry.path == TREE:
            tree = SentTree.read(json.loads(b"".join(content)))
            continue
        top, _, path = entry.path.partition("/")
        if top not in tops or not path:
            raise Refused(f"{entry.path[:200]!a} belongs nowhere")
        _put(tops[top] / path, entry, content)
        files, size = files + 1, size + entry.size
    recreate(places.workspace, tree)  # behind all files: none is written through a link
    return files, size


def _put(path: Path, entry: Entry, content: Iterator[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of a try that was cut off
    with path.open("xb") as file:
        for piece in content:
            file.write(piece)
    path.chmod(entry.mode)
    # Not of now: whatever the tool writes from now on is seen as a change, however soon.
    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))


def _bring_back(task: Task, places: Places, before: dict[str, Found]) -> None:
    began = time.monotonic()
    changes = compare(before, scan(str(places.workspace), task.limits), task.limits)
    with tempfile.TemporaryFile() as spool:
        _pack(spool, changes, places.workspace)
        size = spool.tell()
        upload(task.up, spool, size, seconds(dict(os.environ), "TOOLBOX_UPLOAD_S", _UPLOAD_S))
    _say(
        "uploaded",
        changed=len(changes.changed),
        removed=len(changes.removed),
        skipped=len(changes.skipped),
        refused=len(changes.refused),
        bytes=size,
        ms=_since(began),
    )


def _pack(spool: IO[bytes], changes: Changes, workspace: Path) -> None:
    packer = Packer(spool.write)
    for path in changes.changed:
        try:
            with _opened(workspace / path) as file:
                status = os.fstat(file.fileno())
                found = status.st_size, status.st_mtime_ns, status.st_mode & 0o777
                packer.add(Entry(f"workspace/{path}", *found), file.read)
        except PermissionError:
            changes.skipped.append(path)
    packer.add_bytes(
        MANIFEST,
        json.dumps(
            {
                "removed": changes.removed,
                "skipped": changes.skipped,
                "refused": changes.refused,
                "whole": changes.whole,
                **({"tree": changes.tree._asdict()} if changes.tree is not None else {}),
            }
        ).encode(),
    )
    packer.close()


def _opened(path: Path) -> IO[bytes]:
    # A program that still runs, against what Kubernetes reports, must not redirect us by a link.
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def _fail(places: Places, reason: str) -> int:
    """Tell everybody who may wait: the wrapper, the log, and the pod's status."""
    _say("failed", m=reason)
    with contextlib.suppress(OSError):
        if not (places.shared / "ready").exists():
            _write(places.shared / "failed", reason.encode(errors="replace"))
    with contextlib.suppress(OSError), _TERMINATION_LOG.open("wb") as file:
        file.write(reason.encode(errors="replace")[:4000])
    return 1


def _write(path: Path, data: bytes) -> None:
    """Write a file that others wait for: whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def _say(kind: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"k": kind, **more}) + "\n")
    sys.stdout.flush()


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
