"""What a run must not show: its own secrets, its project's, and every one of the service's."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest

from app.config import VARIABLES, Settings
from app.core.models import Run, RunKind, RunStatus
from app.plan.projects import ProjectConfig
from app.worker.project_source import Secrets

KEYS = [urlsafe_b64encode(bytes([n]) * 32).decode() for n in (1, 2)]


def run(**env: str) -> Run:
    return Run(
        run_id="r1",
        user_id="joe",
        kind=RunKind.STEPS,
        status=RunStatus.RUNNING,
        spec={"env": env} if env else {},
        created_at=0,
    )


def settings(tmp_path: Path, **given: Any) -> Settings:
    return Settings(data_dir=tmp_path, **given)


async def shown(secrets: Secrets, text: str, run: Run, project: ProjectConfig | None = None) -> str:
    return (await secrets.masker(run, project)).text(text)


OWN: list[tuple[dict[str, str], list[str]]] = [
    ({"api_token": "own-token-0001"}, ["own-token-0001"]),
    ({"webhook_secret": "whsec_b2xkLXNlY3JldA== newer-secret-1"}, ["b2xkLXNlY3JldA==", "newer-secret-1"]),
    ({"projects_key": ",".join(KEYS)}, KEYS),
    ({"projects_token": "projects-0001"}, ["projects-0001"]),
    ({"projects_url": "https://joe:pa55-w0rd@projects.example"}, ["pa55-w0rd"]),
    (
        {"s3_access_key": "s3-access-0001", "s3_secret_key": "s3-secret-0001"},
        ["s3-access-0001", "s3-secret-0001"],
    ),
    ({"redis_url": "redis://:r3d%2Fis-pw@h:1/0"}, ["r3d%2Fis-pw", "r3d/is-pw"]),
    ({"llm_model": "m", "llm_key": "llm-key-0001"}, ["llm-key-0001"]),
    ({"llm_proxy": "http://joe:pr0xy-pw@proxy.example"}, ["pr0xy-pw"]),
    ({"redis_sentinel_password": "sentinel-0001"}, ["sentinel-0001"]),
    ({"database_url": "postgresql://u:db%40-pass1@h/d"}, ["db%40-pass1", "db@-pass1"]),
    ({"upstash_redis_rest_url": "https://h", "upstash_redis_rest_token": "upstash-0001"}, ["upstash-0001"]),
]


@pytest.mark.parametrize(("given", "hidden"), OWN)
async def test_every_secret_of_the_service_is_masked_one_by_one(
    tmp_path: Path, given: dict[str, str], hidden: list[str]
) -> None:
    secrets = Secrets(settings(tmp_path, **given))
    for value in hidden:
        assert await shown(secrets, f"it is {value}.", run()) == "it is ***."
        assert await shown(secrets, f"it is {value}.", run(A_TOKEN="another-0001")) == "it is ***."


def test_every_secret_setting_is_one_of_them() -> None:
    known = {name for given, _ in OWN for name in given}
    secret = {name.lower() for name, field in VARIABLES.items() if "SecretStr" in str(field.annotation)}
    assert secret <= known


async def test_what_a_program_may_read_beside_the_settings_is_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's environment, through /proc, and the token that `up` made, in the data folder."""
    monkeypatch.setenv("PGPASSWORD", "from-outside-1")
    (tmp_path / "token").write_text("made-by-up-0001\n")
    secrets = Secrets(settings(tmp_path))
    assert await shown(secrets, "from-outside-1 made-by-up-0001", run()) == "*** ***"


async def test_a_runs_and_its_projects_secrets_are_masked(tmp_path: Path) -> None:
    secrets = Secrets(settings(tmp_path))
    project = ProjectConfig(
        "p", "postgresql://u:dbpass-1@h/d", env={"X_TOKEN": "x-token-0001"}, secrets={"ANY": "letters"}
    )
    text = "t0k3n-a dbpass-1 x-token-0001 letters 4096"
    assert (
        await shown(secrets, text, run(A_KEY="t0k3n-a", MAX_TOKENS="4096"), project) == "*** *** *** *** 4096"
    )


async def test_the_loop_goes_on_while_much_is_made_ready(tmp_path: Path) -> None:
    secrets, turns = Secrets(settings(tmp_path)), 0
    making = asyncio.create_task(secrets.masker(run(TOKEN="\n".join(f"s3cr3t-{n}-{n}" for n in range(1500)))))
    while not making.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 3
    assert (await making).text("a s3cr3t-1499-1499") == "a ***"


async def test_runs_without_secrets_share_one_masker(tmp_path: Path) -> None:
    secrets = Secrets(settings(tmp_path))
    assert await secrets.masker(run(LANG="C")) is await secrets.masker(run()) is secrets.shared
