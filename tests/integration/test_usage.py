"""The space of users' files: the same sum on both kinds of store, one leader, a bounded number of series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from prometheus_client import generate_latest

from app.config import Settings
from app.maintenance.usage import LARGEST, UsageCount, show
from app.storage.factory import open_workspaces, usage
from app.storage.workspace import Workspaces


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(port=0)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1"
    )
    client.create_bucket(Bucket="files")
    yield url
    server.stop()


@pytest.fixture(params=["directory", "s3"])
async def workspaces(request: pytest.FixtureRequest, tmp_path: Path) -> Workspaces:
    chosen = {"data_dir": tmp_path}
    if request.param == "s3":
        url = request.getfixturevalue("s3")
        chosen |= {
            "s3_bucket": "files",
            "s3_endpoint": url,
            "s3_access_key": "x",
            "s3_secret_key": "x",
            "s3_region": "us-east-1",
        }
    return open_workspaces(Settings(**chosen))  # pyright: ignore[reportArgumentType]


def series() -> dict[str, float]:
    lines = [
        line
        for line in generate_latest().decode().splitlines()
        if line.startswith("tailrun_workspace_bytes{")
    ]
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines}


async def test_the_sum_is_by_user(workspaces: Workspaces) -> None:
    """All runs of a user together, folders too."""
    try:
        assert await usage(workspaces) == {}
        for user, run, path, size in (("ann", "r1", "a", 5), ("ann", "r2", "d/b", 7), ("bob", "r3", "c", 11)):
            await workspaces.open(user, run).write(path, b"x" * size)
        assert await usage(workspaces) == {"ann": 12, "bob": 11}
    finally:
        await workspaces.close()


async def test_who_does_not_lead_shows_nothing(tmp_path: Path) -> None:
    """Or a figure of yesterday would stand beside that of today; who leads again counts at once."""
    workspaces = open_workspaces(Settings(data_dir=tmp_path))
    await workspaces.open("ann", "r1").write("a", b"12345")
    count = UsageCount(workspaces, 3600.0)
    await count.look()
    assert series() == {"ann": 5.0, "(others)": 0.0}
    await workspaces.open("ann", "r1").write("b", b"12345")
    await count.look()
    assert series()["ann"] == 5.0, "it is not time yet"
    count.idle()
    assert series() == {}
    await count.look()
    assert series()["ann"] == 10.0
    await workspaces.close()


def test_many_users_are_few_series() -> None:
    show(Counter({f"u{n}": n for n in range(1, 101)}))
    shown = series()
    assert len(shown) == LARGEST + 1
    assert shown["u100"] == 100
    assert sum(shown.values()) == sum(range(1, 101))
