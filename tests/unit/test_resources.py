"""What a machine, or a container on it, has left: measured where the kernel says so."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.core.telemetry import LACKS
from app.worker import resources
from app.worker.resources import FRESH_S, Resources
from tailrun.process.host import Need, free_disk, free_fds, free_memory

MB = 1_000_000


def machine(root: Path, available_kib: int, group: str = "/", **limits: dict[str, object]) -> Path:
    """Pretend a machine: free memory, our control group, and the files of some groups (`_` is `/`)."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal:  99 kB\nMemAvailable:   {available_kib} kB\n")
    (root / "proc/self/cgroup").write_text(f"0::{group}\n")
    for name, files in limits.items():
        folder = root / "sys/fs/cgroup" / name.replace("_", "/").strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / f"memory.{file}").write_text(f"{content}\n")
    return root


def test_free_memory_is_what_the_machine_says(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, 2048)) == 2048 * 1024


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"max": 500 * MB, "current": 100 * MB}, 400 * MB),
        ({"max": 500 * MB, "current": 400 * MB, "stat": "anon 1\ninactive_file 50000000"}, 150 * MB),
        ({"max": "max", "current": 100 * MB}, 2_000_000 * 1024),
        ({"current": 100 * MB}, 2_000_000 * 1024),
    ],
)
def test_a_containers_limit_counts(tmp_path: Path, limits: dict[str, object], left: int) -> None:
    """Files that the kernel would give up at once count as free; without a limit the machine counts."""
    assert free_memory(machine(tmp_path, 2_000_000, "/pod", pod=limits)) == left


def test_the_tightest_of_the_groups_around_us_counts(tmp_path: Path) -> None:
    pod = {"max": 900 * MB, "current": 100 * MB}
    outer = {"max": 500 * MB, "current": 200 * MB}
    root = machine(tmp_path, 2_000_000, "/outer/pod", outer_pod=pod, outer=outer)
    assert free_memory(root) == 300 * MB


def test_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    """With a namespace of its own its group is `/`, and the limit stands at the top."""
    assert free_memory(machine(tmp_path, 2_000_000, "/", _={"max": 50 * MB, "current": 10 * MB})) == 40 * MB


def test_a_machine_that_says_nothing_lacks_nothing(tmp_path: Path) -> None:
    """macOS for instance: what can't be measured stops nobody."""
    assert free_memory(tmp_path) is None
    assert Resources(Need(10**18, 0, 0), tmp_path, root=tmp_path).lack() == ""


def test_free_disk_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    """Also before the folder has been made."""
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(free_disk(tmp_path), rel=0.1)


@contextmanager
def fds_limited_to(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_free_fds_are_the_limit_less_those_open() -> None:
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as the code counts them
    with fds_limited_to(opened + 500):
        assert free_fds() == 500
        with Path("/dev/null").open():
            assert free_fds() == 499


def test_a_lack_is_said_once_with_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks once a second; coming and going each are one line in the log."""
    said: list[str] = []
    monkeypatch.setattr(resources.log, "warning", lambda text, **_: said.append(text))
    monkeypatch.setattr(resources.log, "info", lambda text, **_: said.append(text))
    now = 0.0
    root = machine(tmp_path, 1000)
    watched = Resources(Need(2000 * 1024, 1, 1), tmp_path, lambda: now, root)
    assert "memory: 1024000 bytes are free, 2048000 are needed (MIN_FREE_MEMORY_BYTES)" in watched.lack()
    assert LACKS.labels("memory")._value.get() == 1
    machine(tmp_path, 3000)
    assert watched.lack()
    now += FRESH_S
    assert watched.lack() == ""
    assert LACKS.labels("memory")._value.get() == 0
    assert [text.split(",")[0] for text in said] == ["claiming nothing", "claiming again"]


def test_several_lacks_are_all_named(tmp_path: Path) -> None:
    lack = Resources(Need(10**18, 10**18, 10**9), tmp_path, root=machine(tmp_path, 1)).lack()
    assert [part.split(":")[0] for part in lack.split("; ")][:2] == ["memory", "disk"]
