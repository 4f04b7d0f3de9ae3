"""`tailrun demo` from start to end: a real run, its lines and files, and nothing left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import psutil
import pytest
from support.up_process import clean_environment, tailrun, until

pytestmark = pytest.mark.timeout(600)


def left_over(marker: str) -> list[str]:
    found: list[str] = []
    for process in psutil.process_iter():
        try:
            argv = process.cmdline()
            if marker in process.environ().get("DATA_DIR", "") or any(marker in word for word in argv):
                found.append(" ".join(argv))
        except psutil.Error:
            continue
    return found


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    # What the environment names must not be touched: these would all fail.
    return clean_environment(
        TMPDIR=str(temporary),
        DATABASE_URL="postgresql://127.0.0.1:1/none",
        REDIS_URL="redis://127.0.0.1:1",
        S3_BUCKET="none",
        API_TOKEN="not-this-one",
    )


def test_the_demo(tmp_path: Path, env: dict[str, str]) -> None:
    done = tailrun("demo", env=env, cwd=tmp_path, timeout_s=500)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "succeeded" in lines[-1]
    assert any(line.startswith("▸ count shell") for line in lines)
    assert any(line.startswith("▸ chart code") for line in lines)
    assert any(re.fullmatch(r" +info │ +\d+ \./README\.md", line) for line in lines)
    assert any(line.startswith("   info ┃ ") for line in lines)
    assert any("RECORDED" in line for line in lines)
    assert "▸ c2-1 shell: python primes.py" in lines
    assert "9592 primes" in done.stdout
    assert "not-this-one" not in done.stdout
    kept = tmp_path / ".tailrun" / "demo"
    assert "| 100000 | 9592 |" in (kept / "primes.md").read_text()
    assert "| word | times |" in (kept / "report.md").read_text()
    chart = ET.fromstring((kept / "chart.svg").read_text())
    bars = [
        each for each in chart.iter("{http://www.w3.org/2000/svg}rect") if each.get("fill") == "url(#bar)"
    ]
    assert len(bars) == 14
    assert left_over(str(tmp_path)) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_demo_that_is_interrupted_leaves_nothing_either(tmp_path: Path, env: dict[str, str]) -> None:
    out = tmp_path / "out"
    with out.open("wb") as file:
        demo = subprocess.Popen(
            [sys.executable, "-m", "app", "demo"], env=env, cwd=tmp_path, stdout=file, stderr=file
        )
    until(lambda: "▸ chart" in out.read_text() or demo.poll() is not None, 90)
    demo.send_signal(signal.SIGINT)
    assert demo.wait(60) == 130, out.read_text()
    assert out.read_text().splitlines()[-1] == "tailrun: The demo was stopped"
    assert left_over(str(tmp_path)) == []
    assert list((tmp_path / "tmp").iterdir()) == []
