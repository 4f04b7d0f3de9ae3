"""The store of the run's files goes away for a while: runs wait for it, and nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.s3_server import S3Server
from support.stack import Stack, shell, wait_for
from support.tcp_proxy import TcpProxy


@dataclass
class Place:
    """A stack whose store is behind a proxy; gone, the proxy leads to a port where nobody listens."""

    stack: Stack
    proxy: TcpProxy
    store: int

    def gone(self) -> None:
        self.proxy.target = 1
        self.proxy.cut()

    def back(self) -> None:
        self.proxy.target = self.store

    def said(self, run_id: str, text: str) -> bool:
        return any(text in str(event.get("content")) for event in self.stack.events(run_id))


@pytest.fixture
def place(tmp_path: Path, sqlite_url: str) -> Iterator[Place]:
    with S3Server() as store:
        port = int(store.url.rpartition(":")[2])
        proxy = TcpProxy(port)
        found: dict[str, Any] = store.settings("bucket")
        settings = {name.upper(): str(value) for name, value in found.items()} | {
            "S3_ENDPOINT": f"http://127.0.0.1:{proxy.port}",
            "S3_SECRET_KEY": "s",
            "RETRY_BASE_S": "0.1",
        }
        stack = Stack(tmp_path, sqlite_url, **settings)
        try:
            yield Place(stack, proxy, port)
        finally:
            stack.close()
            proxy.close()


def test_a_run_waits_for_a_store_that_is_away_and_counts_no_try(place: Place) -> None:
    """Also one that may be tried only once: it never began."""
    place.gone()
    run_id = place.stack.submit(shell("echo done"), max_attempts=1)
    wait_for(lambda: place.stack.run(run_id)["attempt"] >= 3, "three looks at the store")
    assert place.said(run_id, "without counting a try")
    place.back()
    ended = place.stack.wait_end(run_id)
    assert (ended["status"], ended["retries"]) == ("succeeded", 0)


def test_a_step_whose_files_can_not_be_kept_yet_is_not_run_twice(place: Place) -> None:
    marks = place.stack.folder / "marks"
    run_id = place.stack.submit(
        shell(f"echo x >> {marks}; echo kept > file; while [ ! -e {marks}.go ]; do sleep 0.1; done"),
        shell("cat file"),
    )
    wait_for(marks.exists, "the step to begin")
    place.gone()
    Path(f"{marks}.go").touch()
    wait_for(lambda: place.said(run_id, "waiting to keep its files"), "the step to wait for the store")
    place.back()
    ended = place.stack.wait_end(run_id)
    assert (ended["status"], ended["attempt"]) == ("succeeded", 1)
    assert marks.read_text() == "x\n"
    assert place.said(run_id, "kept")


def test_a_cancel_does_not_wait_for_the_store(place: Place) -> None:
    marks = place.stack.folder / "marks"
    run_id = place.stack.submit(shell(f"echo x > file; touch {marks}; sleep 1"))
    wait_for(marks.exists, "the step to begin")
    place.gone()
    wait_for(lambda: place.said(run_id, "waiting to keep its files"), "the step to wait for the store")
    place.stack.cancel(run_id)
    assert place.stack.wait_end(run_id, 30)["status"] in {"cancelled", "failed"}
