"""A tool pod without a cluster: its sync container as a real process, over folders of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.stack import wait_for

ROOT = Path(__file__).parents[2]


class SyncProcess:
    """`toolbox sync` of one pod; `start` again is what a kubelet does with a dead container."""

    def __init__(self, folder: Path, sync_json: Mapping[str, Any], **env: str) -> None:
        self.folder = folder
        self.workspace = folder / "workspace"
        self.shared = folder / "tailrun"
        for place in (self.workspace, self.shared):
            place.mkdir(parents=True, exist_ok=True)
        self._secret = folder / "sync.json"
        self._secret.write_text(json.dumps(sync_json))
        self._env = env
        self._log = folder / "sync.log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "toolbox", "sync"],
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "TOOLBOX_CWD": str(self.workspace),
                    "TOOLBOX_WAIT": str(self.shared / "ready"),
                    "TOOLBOX_SECRET": str(self._secret),
                    **self._env,
                },
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines()]

    def wait_ready(self) -> SyncProcess:
        wait_for(
            lambda: (self.shared / "ready").exists() or self.popen.poll() is not None, "the workspace", 60
        )
        assert (self.shared / "ready").exists(), self.log
        return self

    def terminate(self) -> int:
        """Be the kubelet after the tool's container ended."""
        self.popen.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        return self.popen.wait(60)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(60)
