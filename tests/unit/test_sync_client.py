"""The client for programs without asyncio is the image of the asynchronous one."""

from __future__ import annotations

import inspect
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tailrun import AsyncClient, Client

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "sync_client.py"
ASYNC = (ROOT / "tailrun" / "async_client.py").read_text(encoding="utf-8")
SYNC = ROOT / "tailrun" / "client.py"

image: Callable[[str], str] = runpy.run_path(str(SCRIPT))["image"]


def parameters(kind: type) -> dict[str, list[tuple[str, object, object]]]:
    """Return name, default and kind of each parameter, by public method."""
    return {
        name: [(p.name, p.default, p.kind) for p in inspect.signature(method).parameters.values()]
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_the_client_is_the_image() -> None:
    """Whoever changes the asynchronous client also runs the script."""
    assert SYNC.read_text(encoding="utf-8") == image(ASYNC), "run scripts/sync_client.py"


def test_both_have_the_same_methods() -> None:
    assert len(parameters(Client)) > 20
    assert parameters(Client) == parameters(AsyncClient)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("LOCK = asyncio.Lock()", "asyncio"),
        ("STACK = AsyncExitStack", "AsyncExitStack"),
        ("X = anext", "anext"),
    ],
)
def test_what_the_table_does_not_know_is_refused(line: str, word: str) -> None:
    """A word of asyncio never reaches the synchronous client."""
    with pytest.raises(ValueError, match=f"No rule takes away {word}: add one to RULES"):
        image(f"{ASYNC}\n\n{line}\n")


def test_a_rule_without_use_is_refused() -> None:
    """The table stays as small as the difference."""
    with pytest.raises(ValueError, match=r"contextmanager.* matches nothing"):
        image(ASYNC.replace("asynccontextmanager", "contextmanager"))


def test_check_writes_nothing() -> None:
    before = SYNC.stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, SCRIPT, "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr, SYNC.stat().st_mtime_ns) == (0, "", before)


@pytest.mark.parametrize(("name", "other"), [("Client", "async_client"), ("AsyncClient", "client")])
def test_neither_client_imports_the_other(name: str, other: str) -> None:
    """Names of the package are imported when first used; asyncio only by the client that needs it."""
    script = f"import sys; from tailrun import {name}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True).stdout
    modules = set(loaded.decode().split())
    assert f"tailrun.{other}" not in modules
    assert ("asyncio" in modules) == (name == "AsyncClient")
