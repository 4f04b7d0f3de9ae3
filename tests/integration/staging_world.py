"""What tests of staging start from: a store of workspaces, its staging, and pods to carry files to."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from support.tool_pod import SyncProcess

from app.storage.staging import Offer, Staging
from app.storage.workspace import Workspace, Workspaces

KEY = "tool-0123456789abcdef"


@dataclass
class World:
    """One way of staging, real at both ends."""

    folder: Path
    workspaces: Workspaces
    staging: Staging
    pods: list[SyncProcess] = field(default_factory=list[SyncProcess])

    @property
    def workspace(self) -> Workspace:
        return self.workspaces.open("ann", "run-1")

    async def offer(self, source: Mapping[str, bytes] | None = None, *, lifetime_s: float = 600) -> Offer:
        return await self.staging.offer(KEY, self.workspace, source or {}, lifetime_s=lifetime_s)

    def pod(self, offer: Offer | Mapping[str, Any], **env: str) -> SyncProcess:
        said = offer.sync_json() if isinstance(offer, Offer) else offer
        pod = SyncProcess(self.folder / f"pod{len(self.pods)}", said, **env)
        self.pods.append(pod)
        return pod

    async def send_back(self, archive: bytes, offer: Offer | None = None) -> None:
        """Upload as a hostile pod would."""
        up = (offer or await self.offer()).up
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
            answer = await client.request(up["method"], up["url"], headers=up["headers"], content=archive)
        assert answer.is_success, answer.text


def manifest(**said: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(
        "manifest.json",
        json.dumps({"removed": [], "skipped": [], "refused": [], "whole": True, **said}).encode(),
    )


def member(name: str, content: bytes = b"", **header: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in header.items():
        setattr(info, key, value)
    return info, content


def packed(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Pack with the library, which lets through what our own packer would never write."""
    out = io.BytesIO()
    for info, content in members:
        out.write(info.tobuf(form) + content + bytes(-len(content) % 512))
    out.write(bytes(1024))
    return gzip.compress(out.getvalue(), 1)
