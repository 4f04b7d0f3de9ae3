"""Programs under `toolbox exec`, and what its frames say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FRAME_BYTES = 16_384
EXEC = (sys.executable, "-S", "-m", "toolbox", "exec", "--")


def joined(frames: list[dict[str, Any]], stream: str) -> str:
    """Return a stream's text as the contract says: parts joined, a line end behind every whole line."""
    text = ""
    for frame in frames:
        if frame.get("s") == stream:
            text += frame["d"] + ("" if "p" in frame or "u" in frame else "\n")
    return text


def decode(raw: bytes) -> list[dict[str, Any]]:
    """Read frames, and hold them to what is promised of all of them."""
    lines = raw.split(b"\n")
    assert lines.pop() == b"", "the last frame has no end"
    assert max(map(len, lines), default=0) < FRAME_BYTES
    frames = [json.loads(line) for line in lines]
    first = frames[0]["n"] if frames else 1
    assert [frame["n"] for frame in frames] == list(range(first, first + len(frames)))
    assert all(set(frame) <= {"n", "s", "t", "d", "p", "u", "k", "m", "x"} for frame in frames)
    return frames


@dataclass
class Outcome:
    """How a wrapped program ended."""

    code: int
    frames: list[dict[str, Any]] = field(repr=False)

    @property
    def end(self) -> dict[str, Any]:
        """The exit frame, which is the last and the only one."""
        assert [n for n, frame in enumerate(self.frames) if "x" in frame] == [len(self.frames) - 1]
        return self.frames[-1]["x"]

    @property
    def out(self) -> str:
        return joined(self.frames, "o")

    @property
    def err(self) -> str:
        return joined(self.frames, "e")

    @property
    def news(self) -> list[tuple[str, str]]:
        return [(frame["k"], frame["m"]) for frame in self.frames if "k" in frame]


def start(argv: list[str], cwd: Path, *before: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start `argv` wrapped; `before` stands before the whole command, `TOOLBOX_…` come by name."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TOOLBOX_CWD": str(cwd)}
    env |= {name: options.pop(name) for name in list(options) if name.startswith("TOOLBOX_")}
    return subprocess.Popen([*before, *EXEC, *argv], stdout=subprocess.PIPE, env=env, **options)


def finish(process: subprocess.Popen[bytes]) -> Outcome:
    raw, _ = process.communicate(timeout=110)
    return Outcome(process.returncode, decode(raw))


def wrapped(argv: list[str], cwd: Path, **options: Any) -> Outcome:
    return finish(start(argv, cwd, **options))


def python(code: str, *args: str) -> list[str]:
    return [sys.executable, "-S", "-c", code, *args]
