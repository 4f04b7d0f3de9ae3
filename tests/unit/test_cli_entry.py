"""A command's output and errors at its edge: everything gets out, or one line says why not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tailrun import Invalid, Unreachable
from tailrun.commands.connection import CliError
from tailrun.commands.entry import escaped, explained

ROOT = Path(__file__).parents[2]
ODD = "✓ 漢 é 😀 \udcff"


def python(code: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return run(["-c", f"from tailrun.commands.entry import call\n{code}"], **env)


def run(argv: Sequence[str | bytes], **env: str) -> subprocess.CompletedProcess[bytes]:
    clean = {
        name: value for name, value in os.environ.items() if name not in {"API", "TOKEN", "TAILRUN_DEBUG"}
    }
    return subprocess.run(
        [sys.executable, *argv],
        env=clean | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        check=False,
        timeout=120,
    )


def one_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the line that a refused command says: one, without a traceback."""
    said = done.stderr.decode()
    assert "Traceback" not in said
    assert said.startswith("tailrun: "), said
    assert len(said.splitlines()) == 1, said
    return said


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "cp437", "utf-8", "utf-16"])
def test_every_character_gets_out_whatever_the_encoding(encoding: str) -> None:
    done = python(f"call(lambda: print({ODD!a}) or print('last'))", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).splitlines()[-1] == "last"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_json_is_still_json_where_characters_are_escaped(encoding: str) -> None:
    code = f"import json\ncall(lambda: print(json.dumps({ODD!a}, ensure_ascii=False)))"
    done = python(code, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert json.loads(done.stdout.decode(encoding)) == ODD


def test_the_handler_passes_on_what_is_no_encoding() -> None:
    with pytest.raises(UnicodeDecodeError):
        escaped(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("text", ["x", "x" * 100_000])
def test_a_full_disk_is_one_line_and_no_success(text: str) -> None:
    with Path("/dev/full").open("wb") as full:
        code = f"from tailrun.commands.entry import call\ncall(lambda: print({text!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1
    assert "No space left" in one_line(subprocess.CompletedProcess([], 1, b"", done.stderr))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_error(closed: str) -> None:
    code = "import sys; from tailrun.commands.entry import call; call(lambda: (sys.stdin.read(), print('x')))"
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_leaves_is_no_traceback() -> None:
    code = "from tailrun.commands.entry import call; call(lambda: [print('x' * 100) for _ in range(10000)])"
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -c "$1" | head -n 1', sys.executable, code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (CliError("usage", 2), "usage", 2),
        (Invalid(422, "invalid", "no"), "no", 1),
        (Unreachable("away"), "away. Is it running?", 1),
        (PermissionError(errno.EACCES, "Permission denied", "p/sec"), "p/sec: Permission denied", 1),
        (OSError(errno.EXDEV, "Cross-device", "a", None, "b"), "a → b: Cross-device", 1),
        (OSError("odd"), "odd", 1),
        (UnicodeEncodeError("utf-8", "name \udcff", 5, 6, "surrogates"), "'name \\udcff' holds bytes", 2),
        (UnicodeDecodeError("utf-8", b"\xffx", 0, 1, "start byte"), "not UTF-8", 2),
        (ValueError("Out of range"), "Out of range", 1),
        (OverflowError("timestamp too large"), "timestamp too large", 1),
        (RecursionError(), "RecursionError", 1),
        (TypeError("bug"), "internal error: TypeError: bug (TAILRUN_DEBUG=1", 70),
    ],
)
def test_each_kind_of_error_has_its_words(error: Exception, said: str, code: int) -> None:
    assert said in explained(error)[0]
    assert explained(error)[1] == code


def test_tracebacks_are_for_those_who_ask() -> None:
    code = "def broken():\n    raise TypeError('bug')\ncall(broken)"
    assert python(code).returncode == 70
    assert b"Traceback" in python(code, TAILRUN_DEBUG="1").stderr


ADDRESSES = [
    "http://[::1",
    "http://127.0.0.1:99999",
    "127.0.0.1:8080",
    "ftp://x",
    "http://",
    "http://a b",
    "x",
]


@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_that_is_none_is_told(url: str) -> None:
    done = run(["-m", "tailrun", "ls"], API=url, TOKEN="t")
    assert done.returncode == 1
    assert "is no address of a server" in one_line(done)


@pytest.mark.parametrize("token", ["tr_sécret", "tr_secret x", "tr_sec\x1bret", "\udcfftr_secret", " "])
def test_a_token_that_is_none_is_told_and_never_shown(token: str) -> None:
    done = run(["-m", "tailrun", "ls"], API="http://127.0.0.1:9", TOKEN=token)
    assert done.returncode == 1
    assert "The token " in one_line(done)
    assert b"cret" not in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "--timeout", "nan", "--", "true"],
        ["run", "--timeout", "inf", "--", "true"],
        ["schedule", "create", "* * * * *", "--timeout", "-inf", "--", "true"],
        ["queue", "--watch", "--every", "inf"],
        ["run", "--", os.fsdecode(b"a\xff")],
        ["run", "--label", os.fsdecode(b"a=\xff"), "--", "true"],
        ["run", "--with", os.fsdecode(b"\xff"), "--", "true"],
        ["logs", os.fsdecode(b"\xff\xfe\xfd\xfc")],
        ["files", "get", "last", os.fsdecode(b"\xff")],
        ["run", "--steps", "/proc/self/mem"],
        ["run", "--steps", "/"],
        ["show", "\n" * 5],
    ],
)
def test_odd_words_and_numbers_are_no_traceback(argv: list[str]) -> None:
    done = run(["-m", "tailrun", *argv], API="http://127.0.0.1:9", TOKEN="t")
    assert done.returncode in {1, 2}
    assert b"Traceback" not in done.stderr
    assert done.stderr


def test_a_servers_end_keeps_its_traceback_and_a_refusal_its_line() -> None:
    start = "from tailrun.commands import entry\nentry.show_tracebacks()\n"
    assert b"Traceback" in python(f"{start}call(lambda: 1 / 0)").stderr
    refused = python(f"{start}def no():\n    raise entry.CliError('no', 2)\ncall(no)")
    assert (refused.returncode, refused.stderr) == (2, b"tailrun: no\n")
