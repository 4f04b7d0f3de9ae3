"""The command line answers at once: nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    *("fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "redis", "boto3", "httpx2"),
    *("pydantic", "pydantic_settings", "structlog", "yaml", "prometheus_client", "app.config"),
}


def test_the_command_line_starts_without_the_servers_libraries() -> None:
    script = "import sys, app.cli; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert HEAVY & set(loaded.stdout.split()) == set()


def test_up_itself_stays_small() -> None:
    script = "import sys, app.up.stack; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert HEAVY & set(loaded.stdout.split()) <= {"pydantic", "pydantic_settings", "app.config"}


def test_every_command_has_help() -> None:
    script = """
from typer.main import get_command
from app.cli import command_line

def walk(command, path):
    subs = getattr(command, "commands", {})
    for name, sub in subs.items():
        walk(sub, [*path, name])
    if not subs:
        assert command.help, path
        print(" ".join(path), "--json" in [o for p in command.params for o in p.opts])
walk(get_command(command_line()), [])
"""
    listed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    commands = dict(line.rsplit(" ", 1) for line in listed.stdout.splitlines())
    assert set(commands) == {
        *("run", "logs", "tail", "ls", "show", "cancel", "retry", "files ls", "files get", "files put"),
        *("queue", "dead list", "dead show", "dead retry", "dead drop", "redis", "env"),
        *("say", "approvals", "approve", "deny", "calls", "transcript", "replay"),
        *("tasks check", "reseal"),
        *("schedule create", "schedule list", "schedule drop"),
        *("token create", "token list", "token revoke"),
        *("up", "down", "demo", "api", "worker", "migrate", "openapi", "config", "models"),
    }
    bare = {name for name, has_json in commands.items() if has_json == "False"}
    plain = {"redis", "up", "down", "demo", "api", "worker", "migrate", "openapi", "config"}
    plain |= {"reseal", "tasks check", "transcript"}
    assert bare == plain
