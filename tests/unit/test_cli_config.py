"""Where a client command goes, with which token, and which run is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.up.data_folder import DataFolder
from tailrun import NotFound
from tailrun.commands.connection import CliError, resolve, target
from tailrun.commands.serving import Serving

HERE = "http://127.0.0.1:8080"


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def served(data_dir: Path) -> None:
    DataFolder(data_dir).announce(Serving(HERE, "own", "redis://127.0.0.1:6379/0", str(data_dir), 1))


@pytest.mark.usefixtures("served")
def test_what_up_wrote_is_used() -> None:
    assert target(None, None) == (HERE, "own")
    assert target(HERE + "/", None) == (HERE + "/", "own")
    assert target(None, "mine") == (HERE, "mine")


@pytest.mark.usefixtures("served")
def test_the_token_of_up_goes_to_no_other_server() -> None:
    with pytest.raises(CliError, match="No token for http://elsewhere"):
        target("http://elsewhere", None)


def test_nothing_known_says_what_to_do() -> None:
    with pytest.raises(CliError, match="tailrun up"):
        target(None, None)


def test_a_broken_file_counts_as_none(data_dir: Path) -> None:
    (data_dir / "up.json").write_text('{"url": 1')
    with pytest.raises(CliError, match="tailrun up"):
        target(None, None)


class Runs:
    """Stands for a client that knows some runs."""

    def __init__(self, *ids: str) -> None:
        self.ids = ids

    def list(self, *, limit: int, cursor: str | None = None) -> dict[str, Any]:
        return {"items": [{"run_id": each} for each in self.ids][:limit], "next": None}

    def get(self, run_id: str) -> dict[str, Any]:
        if run_id not in self.ids:
            raise NotFound(404, "not_found", "no")
        return {"run_id": run_id}


RUNS: Any = Runs("abcd-1", "abcd-2", "abxx-3", "r1")


@pytest.mark.parametrize(
    ("given", "meant"), [("last", "abcd-1"), ("abxx", "abxx-3"), ("abcd-2", "abcd-2"), ("r1", "r1")]
)
def test_runs_may_be_named_by_their_first_characters(given: str, meant: str) -> None:
    assert resolve(RUNS, given) == meant


@pytest.mark.parametrize(
    ("given", "said"), [("abcd", "abcd-1, abcd-2"), ("abx", "too short"), ("zzzz", "no run 'zzzz'")]
)
def test_an_unclear_name_is_refused(given: str, said: str) -> None:
    with pytest.raises(CliError, match=said):
        resolve(RUNS, given)


def test_there_is_no_last_run_before_the_first() -> None:
    nothing: Any = Runs()
    with pytest.raises(CliError, match="no run yet"):
        resolve(nothing, "last")
