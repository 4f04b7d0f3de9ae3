"""Workspaces in a directory and in S3 (moto's real HTTP server): a test that takes one runs twice."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from support.agents import Agents
from support.api_server import Api
from support.live_run import Stores, stores_of
from support.servers import RedisServer
from support.workspace_contents import LIMITS

from app.storage.local_workspace import LocalWorkspaces
from app.storage.s3_workspace import S3Workspaces
from app.storage.workspace import Workspace, Workspaces


def temporary_files(folder: Path) -> list[Path]:
    found = [path for top in ("root/.scratch", "tmp") for path in (folder / top).rglob("*")]
    return [path for path in found if path.suffix != ".lock" and path.name != "workspaces"]


@pytest.fixture
async def stores(api: Api) -> AsyncIterator[Stores]:
    """A worker's stores beside the module's own `api`."""
    async with stores_of(api) as stores:
        yield stores


@pytest.fixture
async def agents(tmp_path: Path, redis_server: RedisServer, migrated_url: str) -> AsyncIterator[Agents]:
    """Agents on each of the two databases in turn; no worker runs yet."""
    agents = Agents(tmp_path, redis_server.url, migrated_url)
    yield agents
    await agents.close()


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_url: str, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid)) % 10**12}"
    client = boto3.client(
        "s3", endpoint_url=s3_url, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    client.create_bucket(Bucket=name)
    client.close()
    return name


@pytest.fixture(params=["local", "s3"])
async def workspaces(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Workspaces]:
    if request.param == "local":
        store: Workspaces = LocalWorkspaces(tmp_path / "root", LIMITS)
    else:
        store = S3Workspaces(
            request.getfixturevalue("bucket"),
            endpoint=request.getfixturevalue("s3_url"),
            region="us-east-1",
            access_key="k",
            secret_key="s",
            limits=LIMITS,
            tmp_dir=tmp_path / "tmp",
        )
    yield store
    await store.close()
    assert temporary_files(tmp_path) == []


@pytest.fixture
def workspace(workspaces: Workspaces) -> Workspace:
    return workspaces.open("ann", "run-1")


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user to whom permissions mean something, who the test is, also where root runs it."""
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    shutil.rmtree(folder)
