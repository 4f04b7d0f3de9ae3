"""Sources that an editor elsewhere made: what bash and Python are given of them, and that they run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.agent.tools.interpreters import as_written_here

LOOP = "for n in 1 2\ndo\n  if [ $n = 2 ]; then echo yes; fi\ndone\ncat <<EOF\nhere\nEOF\nexit 0\n"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_bash_runs_what_windows_wrote(mark: str, end: str) -> None:
    text = as_written_here(mark + LOOP.replace("\n", end), "bash")
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "yes\nhere\n", "")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    "head",
    [
        "# -*- coding: latin-1 -*-\n",
        "#!/usr/bin/env python\n# vim: set fileencoding=cp1252 :\n",
        "\t# coding:utf-16\r\n",
        "# coding: no-such-encoding\n",
        "",
    ],
)
def test_python_reads_a_source_as_the_text_that_it_is(tmp_path: Path, mark: str, head: str) -> None:
    file = tmp_path / "main.py"
    file.write_text(
        as_written_here(f"{mark}{head}print(ascii('é漢'))\n", "python"), encoding="utf-8", newline=""
    )
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("'\\xe9\\u6f22'\n", "")


def test_lines_and_whatever_is_no_declaration_stay() -> None:
    text = "x = 'coding: latin-1'\n# first\n# coding: latin-1\nprint('\\r\\n')\r\n"
    assert as_written_here(text, "python") == text
    assert as_written_here("a\r\nb", "node") == "a\r\nb"
    assert as_written_here("a\rb", "bash") == "a\rb"
