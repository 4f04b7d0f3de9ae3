"""`tailrun config` and `--version`."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from app.cli import command_line
from app.commands.config import shown
from tailrun import VERSION

ROOT = Path(__file__).resolve().parents[2]


def test_version_is_that_of_the_project() -> None:
    """pyproject.toml and the code agree, and the command says it."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
    assert CliRunner().invoke(command_line(), ["--version"]).output == f"tailrun {VERSION}\n"


def test_config_shows_what_is_set_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the environment are shown, credentials are not."""
    monkeypatch.setenv("WORKER_CONCURRENCY", "3")
    monkeypatch.setenv("API_TOKEN", "very-secret")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:very-secret@db.example/tailrun?password=very-secret")
    said = CliRunner().invoke(command_line(), ["config"]).output
    assert "WORKER_CONCURRENCY=3\n" in said
    assert "API_TOKEN=***\n" in said
    assert "DATABASE_URL=postgresql://***@db.example/tailrun?***\n" in said
    assert "very-secret" not in said


@pytest.mark.parametrize(
    ("secret", "expected"),
    [
        ("plain", "***"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:p@ss/word@host/0", "redis://***@host/0"),
        ("postgresql://host/db?sslpassword=x", "postgresql://host/db?***"),
    ],
)
def test_of_a_secret_url_only_its_place_is_shown(secret: str, expected: str) -> None:
    """Also where characters that ought to be encoded are not."""
    assert shown(SecretStr(secret)) == expected


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first question to a process that does not start."""
    monkeypatch.setenv("PORT", "no-number")
    assert "PORT" in str(CliRunner().invoke(command_line(), ["config"]).exception)
