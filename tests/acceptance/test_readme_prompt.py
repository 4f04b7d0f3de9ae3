"""The README's prompt, in a real terminal: what it shows comes out, and the question is answered with y."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

from support.agents import says
from support.scripted_model import ScriptedModel
from support.stack import TOKEN, Stack

ROOT = Path(__file__).resolve().parent.parent.parent
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PATIENCE_S = 120
SORTED = "The second column is the time in milliseconds. I sort by it."
SORT = {"command": "sort -k2 -nr access.log | head -3 > report.md"}


def shown() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [block] = [each for each in re.findall(r"```console\n(.*?)```", readme, re.DOTALL) if "model │" in each]
    return block.splitlines()


def plain(line: str) -> str:
    """Return a line without what differs from run to run: how long a step took."""
    return re.sub(r"· \d[\d.]* m?s", "· 0.0 s", line)


def in_a_terminal(argv: list[str], folder: Path, env: dict[str, str]) -> tuple[int, list[str]]:
    """Run a command in a terminal, answer its question with y; return its exit code and its lines."""
    screen, terminal = pty.openpty()
    program = subprocess.Popen(
        argv, cwd=folder, env=env, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    out, answered, deadline = b"", False, time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if select.select([screen], [], [], 0.5)[0]:
            try:
                piece = os.read(screen, 65536)
            except OSError:  # so ends a terminal whose program is gone
                break
            if not piece:
                break
            out += piece
        if not answered and b"[y/N]" in out:
            answered = os.write(screen, b"y\n") > 0
    else:
        program.kill()
    code = program.wait()
    os.close(screen)
    text = ESCAPES.sub("", out.decode(errors="replace")).replace("\r\n", "\n")
    return code, [line.split("\r")[-1].rstrip() for line in text.split("\n")]


def test_the_prompt_of_the_readme(tmp_path: Path, sqlite_url: str) -> None:
    command, *lines = shown()
    [prompt] = re.findall(r'"(.*)"', command)
    prices, model = tmp_path / "prices.yaml", ScriptedModel()
    prices.write_text("some-model: {input: 0.25, output: 2}\n")
    model.script(
        says("I look at the log first.", ("file_read", {"path": "access.log"}), usage=(812, 41)),
        says(
            "The second column is the time in milliseconds. I sort by it.", ("shell", SORT), usage=(1020, 66)
        ),
        says("The three slowest endpoints are in report.md: /export, /search and /login.", usage=(1130, 32)),
    )
    stack = Stack(
        tmp_path,
        sqlite_url,
        LLM_URL=model.url,
        LLM_MODEL="some-model",
        LLM_KEY="k" * 20,
        LLM_PRICES_FILE=str(prices),
    )
    try:
        (tmp_path / "access.log").write_text("/login 120\n/search 340\n/export 910\n/home 12\n")
        env = os.environ | {"API": stack.url, "TOKEN": TOKEN, "TERM": "xterm", "COLUMNS": "110"}
        argv = [sys.executable, "-P", "-m", "app", "run", "--with", "access.log", prompt]
        code, came = in_a_terminal(argv, tmp_path, env | {"PYTHONPATH": str(ROOT)})
    finally:
        stack.close()
        model.close()
    assert code == 0, came
    rest = iter(map(plain, came))
    assert [line for line in map(plain, lines) if line not in rest] == [], came
