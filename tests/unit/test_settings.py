"""What the settings make of what stands in the environment."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.config import VARIABLES, Settings, environment
from app.db.connect import sqlite_engine, sqlite_path
from app.db.migrate import is_current, migrate
from tailrun.commands.connection import target

ODD = {"PROJECTS_KEY": "A" * 43 + "="}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("name", list(VARIABLES))
def test_no_setting_keeps_the_line_end_of_its_file(
    name: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounted secrets, and what `echo` has written."""
    default = VARIABLES[name].default
    given = ODD.get(name) or (str(default) if default not in (None, "") else "7001")
    for each in VARIABLES:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, given)
    plain = Settings()
    monkeypatch.setenv(name, given + end)
    assert Settings() == plain
    assert text_of(plain.flat()[name]) == text_of(Settings().flat()[name])
    assert environment()[name] == given


def test_a_line_end_alone_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_BUCKET", "\n")
    monkeypatch.setenv("PORT", "\n")
    assert (Settings().storage.s3_bucket, Settings().api.port) == (None, 8080)


def test_the_clients_address_and_token_too() -> None:
    assert target("http://host:1\n", "secret\r\n") == ("http://host:1", "secret")


@pytest.mark.parametrize(
    "name",
    ["plain", "a%20b", "50%", "%", "what?", "c#1", "a b", "ä ü", "[x]", "a+b", "q?x=1&y", "'\"", "%00"],
)
def test_the_database_lies_in_the_data_folder_whatever_its_name(name: str, tmp_path: Path) -> None:
    """The folder's name goes into a URL, and comes out of it as it was."""
    file = tmp_path / name / "tailrun.db"
    url = Settings(data_dir=tmp_path / name).data.effective_database_url
    assert sqlite_path(url) == file
    migrate(url)
    assert is_current(url)
    assert file.exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with sqlite_engine(url, pool_size=1).connect() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM runs")
    sqlite3.connect(file).close()


def text_of(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
