"""Dead letters, schedules, times and priorities from the command line, against one real `up`."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import redis
from support.up_process import Up, clean_environment, until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("cli-queue"), RETRY_BASE_S="0.01", RETRY_MAX_S="0.01").start()
    yield up
    assert up.stop() == 0


def dead_run(up: Up, word: str) -> str:
    """Make a run that prints a word and fails for good, and wait for its letter."""
    script = f"echo {word}; exit 3"
    done = up.run(
        *("run", "--no-follow", "--retry-on", "exit_nonzero", "--attempts", "2", "--", "sh", "-c", script)
    )
    run_id = done.stdout.strip()
    until(lambda: run_id in up.run("dead", "list").stdout)
    return run_id


def letters(up: Up) -> list[dict[str, str]]:
    return json.loads(up.run("dead", "list", "--json").stdout)["items"]


def test_a_dead_letter_is_shown_with_the_end_of_its_log(up: Up) -> None:
    run_id = dead_run(up, "last-words")
    shown = up.run("dead", "show", run_id).stdout
    assert re.search(r"^reason +retries_exhausted$", shown, re.MULTILINE)
    assert "last-words" in shown
    assert json.loads(up.run("dead", "show", letters(up)[0]["id"], "--json").stdout)["run_id"] == run_id
    assert up.run("dead", "show", "nothing").returncode == 1
    assert up.run("dead", "drop", run_id).stdout == "dropped 1\n"
    assert up.run("dead", "drop", run_id).returncode == 1


def test_one_many_and_all_are_retried(up: Up) -> None:
    """By the run or by the letter; what is no entry of a run is refused by name."""
    runs = [dead_run(up, f"word{n}") for n in range(3)]
    with redis.Redis(port=up.redis_port) as client:
        client.lpush("jobs:pending", "garbage")
    until(lambda: "garbage" in up.run("dead", "list").stdout)
    garbage = next(letter["id"] for letter in letters(up) if letter["raw"] == "garbage")
    second = next(letter["id"] for letter in letters(up) if letter["run_id"] == runs[1])
    refused = up.run("dead", "retry", garbage)
    assert (refused.returncode, "drop it" in refused.stderr) == (1, True)
    made = up.run("dead", "retry", runs[0][:8], second)
    assert made.returncode == 0, made.stderr
    retried = [json.loads(up.run("show", run_id, "--json").stdout) for run_id in made.stdout.split()]
    assert {run["retry_of"] for run in retried} == set(runs[:2])
    assert runs[2] in up.run("dead", "list").stdout
    everything = json.loads(up.run("dead", "retry", "--all", "--json").stdout)
    assert runs[2] in {item["run_id"] for item in everything["items"]}
    assert up.run("dead", "retry").returncode == 2
    assert up.run("dead", "drop", garbage).stdout == "dropped 1\n"
    assert up.run("dead", "drop", "--all").returncode == 0
    assert up.run("dead", "drop", "--all", "x").returncode == 2


def test_a_schedule_from_the_terminal(up: Up) -> None:
    command = (
        "schedule",
        "create",
        "30 2 * * *",
        "-z",
        "Europe/Zurich",
        "--high",
        "--",
        "echo",
        "good night",
    )
    schedule_id = up.run(*command).stdout.strip()
    [listed] = json.loads(up.run("schedule", "list", "--json").stdout)
    assert (listed["schedule_id"], listed["timezone"]) == (schedule_id, "Europe/Zurich")
    assert (listed["run"]["argv"], listed["run"]["priority"]) == (["echo", "good night"], "high")
    assert "echo 'good night'" in up.run("schedule", "list").stdout
    assert up.run("schedule", "create", "nonsense", "--", "true").returncode == 1
    assert up.run("schedule", "create", "* * * * *").returncode == 2
    assert up.run("schedule", "drop", schedule_id).stdout == f"dropped {schedule_id}\n"
    assert up.run("schedule", "drop", schedule_id).returncode == 1


def test_a_run_with_a_time(up: Up) -> None:
    """A time without a zone is this machine's; one that is past is now."""
    done = up.run("run", "--no-follow", "--json", "--at", "2020-12-24T18:00+01:00", "--", "true")
    assert json.loads(done.stdout)["run_at"] == "2020-12-24T17:00:00.000000Z"
    refused = up.run("run", "--at", "noon", "--", "true")
    assert (refused.returncode, "--at" in refused.stderr) == (2, True)


def test_the_queue_is_shown_and_redrawn(up: Up) -> None:
    """Once as text; with --watch on a terminal again and again in one place."""
    until(lambda: re.search(r"^in flight +0$", up.run("queue").stdout, re.MULTILINE) is not None)
    shown = up.run("queue").stdout
    for name in ("waiting", "in flight", "delayed", "dead", "ended", "workers"):
        assert re.search(rf"^{name} +\S", shown, re.MULTILINE), name
    main, child = pty.openpty()
    command = [sys.executable, "-m", "app", "queue", "--watch", "--every", "0.1"]
    env = clean_environment(API=f"http://127.0.0.1:{up.port}", TOKEN=up.token, TERM="xterm")
    watching = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=env)
    os.close(child)
    seen = b""
    while seen.count(b"\x1b[H\x1b[2J") < 3:
        seen += os.read(main, 4096)
    watching.send_signal(2)
    assert watching.wait(10) == 0
    os.close(main)
