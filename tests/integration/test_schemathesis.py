"""Whatever is thrown at the documented interface, the server never answers 500.

Half of the calls name a run that is there, so that they come past the look-up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, settings
from pydantic import SecretStr
from schemathesis.checks import not_a_server_error
from support.api_server import TOKEN, Api, serving, settings_for
from support.servers import RedisServer

from app.core.events import Event, EventType
from app.core.models import Fence, RunStatus
from app.db.run_store import Batch, Outcome, RunStore
from app.main import openapi_yaml
from tailrun.process.lines import Level, Stream

DOCUMENT: dict[str, Any] = yaml.safe_load(openapi_yaml())
schema = schemathesis.openapi.from_dict(DOCUMENT)


@schemathesis.serializer("application/gzip")
def archive(_context: Any, value: Any) -> Any:
    """Bytes as they are: what a tool pod sends need not be an archive."""
    return value


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("schemathesis")
    url = f"sqlite:///{folder / 'tailrun.db'}"
    more: dict[str, Any] = {"body_max_bytes": 100_000, "projects_key": SecretStr("k" * 43 + "=")}
    with serving(settings_for(folder, shared_redis.url, url, **more)) as api:
        yield api


@pytest.fixture(scope="module")
def ended(api: Api) -> str:
    """A run that is over, with a line and a file."""
    client = api.admin
    run_id = client.post("/v1/runs", json={"prompt": "x", "planner": "smoke"}).json()["run_id"]
    assert client.put(f"/v1/runs/{run_id}/files/a.txt", content=b"hello").is_success

    async def work(store: RunStore) -> None:
        [run] = await store.claim([run_id], "w1", 5)
        events = [
            Event(3, EventType.LOG, 6, run_id, 1, Level.INFO, Stream.STDOUT, "s1", "hello"),
            Event(4, EventType.END, 6, run_id, 1, data={"status": "failed", "exit_code": 1, "error": None}),
        ]
        batch = Batch(events=events, outcome=Outcome(RunStatus.FAILED, exit_code=1))
        await store.commit(Fence(run_id, run.attempt, "w1"), 2, batch)

    api.store(work)
    return run_id


@schema.parametrize()  # pyright: ignore[reportUntypedFunctionDecorator]
@settings(
    max_examples=20,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
def test_no_input_makes_a_500(api: Api, ended: str, case: Any) -> None:
    """Every operation of the document, with inputs that fit it and inputs that don't."""
    run_id = str((case.path_parameters or {}).get("run_id", ""))
    if run_id and len(run_id) % 2:
        case.path_parameters["run_id"] = ended
    case.call_and_validate(
        base_url=api.url,
        headers={"Authorization": f"Bearer {TOKEN}"},
        checks=[not_a_server_error],
        timeout=60,
    )
