"""The way of a run's files into a tool pod and back, when no credential of the store may go there.

A pod gets two addresses, each good for one archive, one direction and a limited time:

    offer ──> in.tar.gz  (workspace/…, source/…) ──> the pod's sync container ──> /workspace
    collect <── out.tar.gz (workspace/…, manifest.json) <── the same container, after the tool

`S3Staging` hands out presigned URLs of the store that keeps the workspaces; `ApiStaging` needs no
store: the API serves `/v1/staging/{key}`. One conformance suite holds both to this protocol. What
comes back was made beside untrusted code and is verified again before a byte of it is kept.

StagingFailure
├── UploadMissing       nothing came back: the pod died, or its upload did not get through
└── UploadRefused       what came back is damaged, hostile or over a limit as a whole
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from app.core.errors import TailrunError, Unprocessable
from app.storage.workspace import FileInfo, Workspace

KEY = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""The form of a key: a label of DNS, as the names of Jobs are."""


class StagingFailure(Exception):
    """The files of a tool pod did not come back; the message may be shown to the user."""


class UploadMissing(StagingFailure):
    """The pod uploaded nothing: it died first, or its upload did not get through."""


class UploadRefused(StagingFailure):
    """The uploaded archive is damaged, holds what it may not, or is larger than everything allowed."""


class StagingUnset(Exception):
    """Tool pods can't get files: set S3_BUCKET, or TOOL_SYNC_URL to the API's address as pods see it."""

    def __str__(self) -> str:
        return self.__doc__ or ""


@dataclass(frozen=True, slots=True)
class Offer:
    """The task of the pod's sync container, as JSON in its Secret (`sync.json`).

    `down` has `url` and `headers`, `up` also `method`; `limits` has `files`, `bytes` (of all
    files) and `file_bytes`. URLs and headers are secrets: they are never logged. `expires_at`
    is in microseconds since the epoch.
    """

    down: Mapping[str, Any]
    up: Mapping[str, Any]
    limits: Mapping[str, int]
    expires_at: int

    def sync_json(self) -> dict[str, Any]:
        """Return the content of `sync.json`."""
        return {key: value for key, value in asdict(self).items() if key != "expires_at"}


@dataclass(frozen=True, slots=True)
class Collected:
    """The files that came back, in the words of `Checkout`: removed files have size -1.

    `changed` is sorted and, but for the times, the same however often it is collected. `skipped`
    names what has no place in a workspace. `failure` is the first error (`TooLarge`, `Conflict`)
    of a file that was not kept; everything else was, so raise it only after recording the rest.
    """

    changed: list[FileInfo]
    skipped: list[str] = field(default_factory=list[str])
    failure: TailrunError | None = None


class Staging(Protocol):
    """Stages files for tool pods; `key` names one pod (`KEY`), `Unprocessable` for any other shape.

    Every method raises `app.core.errors.StorageError` while the store can't be reached or its disk
    is full.
    """

    async def offer(
        self, key: str, workspace: Workspace, source: Mapping[str, bytes], *, lifetime_s: float
    ) -> Offer:
        """Stage the run's files and the tool's `source` (relative path → content) for one pod.

        The addresses hold for `lifetime_s` seconds: until the pod's deadline and its upload are
        over. Offering a key again replaces what is staged for it, also what had come back.
        Special files in the workspace stay behind; links and folders without files travel.

        Raises:
            Unprocessable: a name in `source` is no path of a workspace.
        """
        ...

    async def collect(self, key: str, workspace: Workspace) -> Collected:
        """Take what the pod uploaded into `workspace`: write what changed, delete what was removed.

        Repeatable: after a crash the next call does the same again. Leaves the upload where it is.

        Raises:
            UploadMissing, UploadRefused: see there; nothing was written.
        """
        ...

    async def drop(self, key: str) -> None:
        """Remove what is staged under `key`, if anything; its addresses lead nowhere from now on."""
        ...

    async def sweep(self, older_than_s: float) -> int:
        """Remove what was staged longer ago than that, and forgotten; return how many keys."""
        ...


def checked_key(key: str) -> str:
    """Return `key`; `Unprocessable` if it isn't one."""
    if not KEY.fullmatch(key):
        raise Unprocessable(f"{key[:64]!r} is no key of staged files.", code="invalid_key")
    return key
