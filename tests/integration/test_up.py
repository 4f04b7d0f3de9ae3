"""`up`: real children, restarts, locks, and nothing left behind however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.servers import free_port
from support.up_process import Up, clean_environment, tailrun, until

from app.core.parent_death import OWN_PYTHON, ROOT

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path / "up")
    yield up
    if up.process is not None and up.exit_code is None:
        up.stop()


def gone(processes: list[psutil.Process]) -> bool:
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


def all_below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_one_ready_line_then_lines_to_copy(up: Up) -> None:
    said = up.start().said
    url, redis = f"http://127.0.0.1:{up.port}", f"redis://127.0.0.1:{up.redis_port}/0"
    token = (up.data / "token").read_text().strip()
    assert f"Tailrun is ready: {url}  token {token}  redis {redis}  data {up.data}\n" in said
    assert f"redis-cli -p {up.redis_port} LLEN jobs:pending" in said
    assert f"curl -N {url}/agent/logs/$RUN_ID/stream -H " in said
    assert set(up.children()) == {"redis", "api", "worker"}
    below = all_below(up.pid)
    assert up.stop(signal.SIGINT) == 0
    assert gone(below)
    assert not (up.data / "up.json").exists()


def test_every_line_to_copy_works_as_it_is_printed_in_any_folder(up: Up, tmp_path: Path) -> None:
    """In a shell that knows no `tailrun`, somewhere else; one after the other, as they stand."""
    lines = [line.strip() for line in up.start().said.splitlines() if line.startswith("  ")]
    assert lines[0].startswith("RUN_ID=$(curl -X POST ")
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    script = "set -e\n" + "".join(f"echo '== {n}'\n{line}\necho\n" for n, line in enumerate(lines))
    script += 'echo "API=$API TOKEN=$TOKEN REDIS_URL=$REDIS_URL"\n'
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=elsewhere,
        env={"PATH": os.environ["PATH"], "HOME": str(elsewhere)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"status":"queued"' in done.stdout or '"status":"running"' in done.stdout
    assert '"type":"end"' in done.stdout
    assert "hello" in done.stdout
    assert done.stdout.count("(integer) 0") >= 1
    found = f"API=http://127.0.0.1:{up.port} TOKEN={up.token} REDIS_URL=redis://127.0.0.1:{up.redis_port}/0"
    assert found in done.stdout


def test_the_environments_line_fails_where_nothing_runs(tmp_path: Path) -> None:
    """`eval "$(tailrun env)"` would be a success otherwise, and $API empty."""
    done = tailrun("env", env=clean_environment(DATA_DIR=str(tmp_path)), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "false\n")
    assert "No server" in done.stderr


def test_what_env_set_does_not_lead_another_up_to_its_redis(up: Up, tmp_path: Path) -> None:
    first = up.start()
    said = first.run("env").stdout
    found = dict(re.findall(r"export (\w*REDIS_URL)=(\S+)", said))
    assert found.keys() == {"REDIS_URL", "TAILRUN_ENV_REDIS_URL"}
    other = Up(tmp_path / "other", **found)
    try:
        assert f"redis redis://127.0.0.1:{other.redis_port}/0" in other.start().said
        assert "REDIS_URL is what `tailrun env` set" in other.said
    finally:
        other.stop()


@pytest.mark.parametrize("how", ["group", "make alone"])
def test_up_ends_when_what_launched_it_is_killed(tmp_path: Path, how: str) -> None:
    """A CI job's end kills make's process group, and `up` stands in one of its own."""
    up = Up(tmp_path / "up")
    up.folder.mkdir()
    launcher, app = Path(ROOT) / "scripts/foreground.py", [sys.executable, "-m", "app", "up"]
    make = [sys.executable, "-c", "import subprocess, sys; subprocess.call(sys.argv[1:])"]
    with up.out.open("wb") as out:
        process = subprocess.Popen(
            [*make, sys.executable, str(launcher), *app],
            cwd=up.folder,
            env=up.env | {"PYTHONPATH": ROOT},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    until(lambda: "Tailrun is ready" in up.said or process.poll() is not None, 180)
    below = all_below(process.pid)
    assert len(below) >= 4
    if how == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    until(lambda: gone(below), 90)
    assert "Stopped." in up.said
    assert not (up.data / "up.json").exists()


def test_secrets_are_private_and_the_token_stays(up: Up) -> None:
    first = up.start().token
    for name in ("token", "up.json"):
        assert stat.S_IMODE((up.data / name).stat().st_mode) == 0o600
    api, worker = up.children()["api"], up.children()["worker"]
    assert api.environ()["API_TOKEN"] == first
    assert "API_TOKEN" not in worker.environ()
    up.stop()
    assert up.start().token == first


@pytest.mark.parametrize("name", ["redis", "api", "worker"])
def test_a_child_that_dies_is_started_again(up: Up, name: str) -> None:
    up.start()
    assert up.run("run", "--", "echo", "before").returncode == 0
    child = up.children()[name]
    child.kill()
    until(lambda: name in up.children() and up.children()[name].pid != child.pid)
    assert f"{name} was killed by SIGKILL; starting it again in " in up.said
    until(lambda: up.run("run", "--", "echo", "after").returncode == 0, 90)
    assert len(json.loads(up.run("ls", "--json").stdout)["items"]) >= 2


def test_a_worker_that_keeps_dying_is_started_until_its_runs_are_done(up: Up) -> None:
    """Also when it dies again as soon as it is there, which costs each run at most a redelivery."""
    up.start()
    run_id = up.run("run", "--no-follow", "--", "sh", "-c", "echo up; sleep 8; echo done").stdout.strip()
    until(lambda: "up" in up.run("logs", run_id).stdout)
    for signum in (signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL):
        until(lambda: "worker" in up.children())
        deaths = up.said.count("worker was killed by")
        up.children()["worker"].send_signal(signum)
        until(lambda before=deaths: up.said.count("worker was killed by") > before)
    assert up.run("logs", "-f", run_id, timeout_s=120).stdout.splitlines()[-1] == "done"


def test_after_kill_9_nothing_is_left_and_a_restart_goes_on(up: Up) -> None:
    """Also with a run in flight, which ends after the restart, and right away."""
    up.start()
    made = up.run("run", "--no-follow", "--", "sh", "-c", "echo one; sleep 3; echo two")
    run_id = made.stdout.strip()
    until(lambda: "one" in up.run("logs", run_id).stdout)
    below = all_below(up.pid)
    up.kill()
    up.start()
    assert gone(below)
    followed = up.run("logs", "-f", run_id, timeout_s=90)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert followed.stdout.splitlines()[-1] == "two"


def test_a_second_up_says_what_is_wrong(up: Up, tmp_path: Path) -> None:
    up.start()
    same_folder = tailrun("up", env=up.env | {"PORT": str(free_port())}, cwd=tmp_path)
    assert same_folder.returncode == 1
    assert f"http://127.0.0.1:{up.port} (process {up.pid})" in same_folder.stderr
    assert "tailrun down" in same_folder.stderr
    same_port = tailrun("up", env=up.env | {"DATA_DIR": "other"}, cwd=tmp_path)
    assert same_port.returncode == 1
    assert f"PORT={up.port + 1}" in same_port.stderr
    same_redis = up.env | {"DATA_DIR": "other", "PORT": str(free_port())}
    refused = tailrun("up", env=same_redis, cwd=tmp_path)
    assert f"REDIS_PORT={up.redis_port + 1}" in refused.stderr
    assert len(same_folder.stderr.splitlines() + same_port.stderr.splitlines()) == 2


def test_down_stops_it_and_says_when_there_is_nothing(up: Up) -> None:
    up.start()
    stopped = up.run("down", timeout_s=120)
    assert (stopped.returncode, stopped.stdout.splitlines()[-1]) == (0, "Stopped")
    assert up.stop() == 0
    again = up.run("down")
    assert (again.returncode, again.stdout) == (0, f"No `tailrun up` is running on {up.data}\n")


def test_down_leaves_a_stranger_alone(tmp_path: Path) -> None:
    """A process that got the number of an `up` that is long gone."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "lock").write_text(json.dumps({"pid": stranger.pid, "born": "long ago"}))
        said = tailrun("down", env=clean_environment(DATA_DIR=str(tmp_path)), cwd=tmp_path)
        assert "No `tailrun up`" in said.stdout
        assert stranger.poll() is None
        stranger.kill()


def test_two_signals_stop_it_at_once(up: Up) -> None:
    up.env["DRAIN_S"] = "600"
    up.start()
    up.run("run", "--no-follow", "--", "sh", "-c", "trap '' TERM; echo up; sleep 600")
    until(lambda: "up" in up.run("logs", "last").stdout)
    assert up.process
    up.process.send_signal(signal.SIGINT)
    until(lambda: "Stopping" in up.said)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0


def test_other_machines_need_a_token_that_somebody_chose(tmp_path: Path) -> None:
    env = clean_environment(HOST="0.0.0.0", DATA_DIR=str(tmp_path / "data"))
    refused = tailrun("up", env=env, cwd=tmp_path)
    assert refused.returncode == 1
    assert "API_TOKEN=" in refused.stderr


def test_with_a_token_it_listens_and_warns(tmp_path: Path) -> None:
    up = Up(tmp_path / "up", HOST="0.0.0.0", API_TOKEN="chosen-by-somebody").start()
    try:
        assert "Warning: HOST=0.0.0.0" in up.said
        assert up.token == "chosen-by-somebody"
        assert not (up.data / "token").exists()
        assert up.run("ls").returncode == 0
    finally:
        assert up.stop() == 0


def test_a_bad_setting_is_named(tmp_path: Path) -> None:
    refused = tailrun("up", env=clean_environment(PORT="eighty", DATA_DIR="x"), cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("tailrun: PORT: ")


def test_a_redis_that_is_not_there_is_named(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    refused = tailrun("up", env=clean_environment(REDIS_URL=url, DATA_DIR="x"), cwd=tmp_path)
    assert refused.returncode == 1
    assert "REDIS_URL does not answer" in refused.stderr


def test_a_redis_of_ones_own_is_used(tmp_path: Path, redis_server: object) -> None:
    url = str(getattr(redis_server, "url", ""))
    up = Up(tmp_path / "up", REDIS_URL=url).start()
    try:
        assert set(up.children()) == {"api", "worker"}
        assert f"redis {url} " in up.said
        assert up.run("run", "--", "true").returncode == 0
    finally:
        up.stop()


def test_api_with_worker_is_one_command(up: Up, tmp_path: Path) -> None:
    up.start()
    env = up.env | {"API_TOKEN": up.token, "REDIS_URL": f"redis://127.0.0.1:{up.redis_port}/0"}
    env |= {"PORT": str(free_port()), "WORKER_PORT": str(free_port())}
    up.children()["worker"].suspend()
    try:
        log = (tmp_path / "both.log").open("wb")
        import sys  # noqa: PLC0415

        both = subprocess.Popen(
            [sys.executable, "-m", "app", "api", "--with-worker"], env=env, stdout=log, stderr=log
        )
        url = f"http://127.0.0.1:{env['PORT']}"
        client = env | {"TAILRUN_URL": url, "TAILRUN_TOKEN": up.token}
        until(lambda: tailrun("run", "--", "true", env=client, cwd=tmp_path).returncode == 0, 90)
        both.terminate()
        assert both.wait(90) == 0
        log.close()
    finally:
        for child in up.children().values():
            child.resume()


def test_the_redis_folder_carries_engine_and_version(up: Up) -> None:
    up.start()
    (folder,) = (up.data / "redis").iterdir()
    assert re.fullmatch(r"(valkey|redis)-\d+\.\d+\.\d+", folder.name)
    assert (folder / "appendonlydir").is_dir()


def test_a_folder_named_app_where_one_stands_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('not ours')")
    argv, env = [*OWN_PYTHON, "app", "--help"], {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
