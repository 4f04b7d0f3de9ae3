"""The command line as people use it, against one real `up`."""

from __future__ import annotations

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.up_process import Up, clean_environment, until
from support.up_process import tailrun as run_tailrun

from tailrun import Client

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("cli"), JOB_MAX_ATTEMPTS="1").start()
    yield up
    assert up.stop() == 0


def made(up: Up, *args: str) -> str:
    """Make a run without following it; return its id."""
    done = up.run("run", "--no-follow", *args)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ended(up: Up, run_id: str) -> dict[str, object]:
    up.run("logs", "-f", run_id)
    return json.loads(up.run("show", run_id, "--json").stdout)


def test_a_command_prints_its_lines_and_brings_its_file(up: Up) -> None:
    (up.folder / "job.py").write_text("import sys; print('got', sys.argv[1]); print('no', file=sys.stderr)")
    done = up.run("run", "--", "python3", "job.py", "arg")
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, ["got arg", "no"])
    assert "uploaded job.py as job.py" in done.stderr
    assert "✔ succeeded" in done.stderr


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("true", 0)])
def test_the_exit_code_is_the_programs(up: Up, script: str, code: int) -> None:
    assert up.run("run", "--", "sh", "-c", script).returncode == code


def test_a_timeout_is_124(up: Up) -> None:
    done = up.run("run", "--timeout", "1", "--", "sleep", "60")
    assert done.returncode == 124
    assert "timed_out" in done.stderr


def test_a_cancelled_run_is_130(up: Up) -> None:
    run_id = made(up, "--", "sleep", "60")
    asked = up.run("cancel", run_id[:8])
    assert (asked.returncode, run_id in asked.stdout) == (0, True)
    assert up.run("logs", "-f", run_id).returncode == 130
    assert up.run("cancel", run_id).stdout == f"{run_id} is cancelled\n"


def test_a_plan_from_a_file(up: Up) -> None:
    (up.folder / "plan.yaml").write_text(
        "steps:\n"
        "- {id: write, tool: file_write, args: {path: a.txt, content: hi}}\n"
        "- {id: show, tool: shell, args: {command: cat a.txt}}\n"
        "labels: {made: here}\n"
    )
    done = up.run("run", "--steps", "plan.yaml", "--label", "more=too")
    assert done.returncode == 0
    assert "▸ show shell: cat a.txt  (2/2)" in done.stderr
    assert json.loads(up.run("show", "last", "--json").stdout)["labels"] == {"more": "too"}


def test_a_bad_plan_is_refused_by_the_server(up: Up) -> None:
    (up.folder / "bad.yaml").write_text("- {tool: shel, args: {command: ls}}")
    done = up.run("run", "--steps", "bad.yaml")
    assert done.returncode == 1
    assert "shel" in done.stderr


def test_a_prompt_without_a_model_is_refused_or_says_so(up: Up) -> None:
    refused = up.run("run", "Test Phase 2B")
    assert refused.returncode == 1
    assert "No model carries out a prompt here: send steps" in refused.stderr
    done = up.run("run", "--planner", "smoke", "Test Phase 2B")
    assert done.returncode == 0
    assert "No model carries out a prompt here" in done.stderr.splitlines()[-2]


def test_json_is_json_everywhere(up: Up) -> None:
    events = [json.loads(line) for line in up.run("run", "--json", "--", "echo", "x").stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "end"
    run_id = events[0]["run_id"]
    assert json.loads(up.run("run", "--json", "--no-follow", "--", "true").stdout)["kind"] == "argv"
    assert [json.loads(line) for line in up.run("logs", "--json", run_id).stdout.splitlines()] == events
    assert json.loads(up.run("files", "ls", run_id, "--json").stdout) == []
    assert json.loads(up.run("ls", "--json", "--limit", "1").stdout)["items"]
    assert json.loads(up.run("queue", "--json").stdout)["depth"] == 0
    assert json.loads(up.run("dead", "list", "--json").stdout) == {"items": [], "next": None}
    assert json.loads(up.run("env", "--json").stdout)["TOKEN"] == up.token
    assert json.loads(up.run("token", "list", "--json").stdout) == []


def test_logs_can_be_narrowed(up: Up) -> None:
    run_id = made(up, "--", "sh", "-c", "echo one; echo two; echo ERROR three >&2")
    ended(up, run_id)
    assert up.run("logs", run_id, "--level", "error").stdout == "ERROR three\n"
    assert up.run("logs", run_id, "--stream", "stderr").stdout == "ERROR three\n"
    assert up.run("logs", run_id, "--grep", "TWO").stdout == "two\n"
    assert "succeeded" in up.run("logs", run_id, "--tail", "1").stderr
    assert up.run("logs", run_id, "--level", "loud").returncode == 2


def test_files_go_both_ways(up: Up, tmp_path: Path) -> None:
    source = tmp_path / "in.bin"
    source.write_bytes(bytes(range(256)) * 400)
    run_id = made(up, "--with", str(source), "--", "cp", "in.bin", "out file.bin")
    ended(up, run_id)
    listed = [line.split("\t") for line in up.run("files", "ls", run_id).stdout.splitlines()]
    assert listed == [["in.bin", "102.4 kB"], ["out file.bin", "102.4 kB"]]
    got = up.run("files", "get", run_id, "out file.bin", "-o", str(tmp_path / "back"))
    assert got.returncode == 0
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    again = up.run("files", "get", run_id, "out file.bin", "-o", str(tmp_path / "back"))
    assert (again.returncode, "--force" in again.stderr) == (1, True)
    assert up.run("files", "put", run_id, str(source), "sub/new.bin").stdout == "sub/new.bin  102.4 kB\n"
    missing = up.run("files", "get", run_id, "nothing", "-o", str(tmp_path / "none"))
    assert (missing.returncode, (tmp_path / "none").exists()) == (1, False)


def test_a_file_that_cannot_be_brought_leaves_no_run_waiting(up: Up, tmp_path: Path) -> None:
    source = tmp_path / "big"
    with source.open("wb") as file:
        file.truncate(100_000_001)
    refused = up.run("run", "--with", str(source), "--", "true")
    assert refused.returncode == 1
    assert json.loads(up.run("show", "last", "--json").stdout)["status"] == "cancelled"


def test_a_reader_that_goes_away_is_no_error(up: Up) -> None:
    run_id = made(up, "--", "seq", "20000")
    ended(up, run_id)
    script = f"{sys.executable} -m app logs {run_id} | head -1"
    shell = subprocess.run(
        ["sh", "-c", script], env=up.env, cwd=up.folder, capture_output=True, text=True, check=True
    )
    assert (shell.stdout, "Traceback" in shell.stderr) == ("1\n", False)


def test_a_run_may_start_with_anothers_files(up: Up) -> None:
    first = made(up, "--", "sh", "-c", "echo kept > a.txt")
    ended(up, first)
    assert up.run("run", "--from", first[:8], "--", "cat", "a.txt").stdout == "kept\n"


def test_retry_makes_a_new_run(up: Up) -> None:
    first = made(up, "--env", "WORD=hello", "--", "sh", "-c", "echo $WORD; exit 3")
    ended(up, first)
    again = up.run("retry", first)
    assert (again.returncode, again.stdout) == (3, "hello\n")
    newest = json.loads(up.run("show", "last", "--json").stdout)
    assert (newest["retry_of"], newest["steps"][0]["exit_code"]) == (first, 3)


def test_ls_and_show_are_readable(up: Up) -> None:
    run_id = made(up, "--label", "team=docs", "--", "true")
    ended(up, run_id)
    row = up.run("ls").stdout.splitlines()[0].split("\t")
    assert (row[0], row[1], row[2], row[-1]) == (run_id, "succeeded", "argv", "team=docs")
    assert "what       true\n" in up.run("show", run_id).stdout


def test_redis_looks_like_redis_cli(up: Up) -> None:
    assert up.run("redis", "LLEN", "jobs:pending").stdout == "(integer) 0\n"
    assert up.run("redis", "TYPE", "jobs:workers").stdout == "zset\n"
    worker = up.run("redis", "ZRANGE", "jobs:workers", "0", "-1").stdout
    assert worker.startswith('1) "')
    wrong = up.run("redis", "LLEN", "jobs:workers")
    assert (wrong.returncode, wrong.stdout.startswith("(error) WRONGTYPE")) == (1, True)
    assert up.run("redis", "DEL", "jobs:workers").returncode == 2


def test_redis_subscribe_shows_a_runs_lines(up: Up) -> None:
    with Client(f"http://127.0.0.1:{up.port}", up.token) as client:
        held = client.create(argv=["echo", "over pub/sub"], start=False)
        terminal = Terminal(up, "redis", "SUBSCRIBE", f"agent:logs:{held['run_id']}")
        terminal.read_until("3) (integer) 1")
        client.start(held["run_id"])
    terminal.read_until("over pub/sub")
    os.write(terminal.fd, b"\x03")
    assert terminal.exit_code() == 0
    assert '1) "message"' in terminal.shown


def test_dead_letters_are_listed_and_dropped(up: Up) -> None:
    import redis  # noqa: PLC0415

    with redis.Redis(port=up.redis_port) as client:
        client.lpush("jobs:pending", "garbage")
    until(lambda: "garbage" in up.run("dead", "list").stdout)
    letter = json.loads(up.run("dead", "list", "--json").stdout)["items"][0]
    assert letter["raw"] == "garbage"
    assert up.run("dead", "retry", "0" * 36).returncode == 1


def test_tokens(up: Up) -> None:
    token = up.run("token", "create", "ada", "--name", "laptop").stdout.strip()
    assert up.run("ls", "--token", token).stdout == ""
    assert up.run("queue", "--token", token).returncode == 1
    (row,) = up.run("token", "list").stdout.splitlines()
    token_id = row.split("\t")[0]
    assert token not in row
    assert up.run("token", "revoke", token_id).returncode == 0
    denied = up.run("ls", "--token", token)
    assert (denied.returncode, denied.stdout) == (1, "")


def test_env_is_for_eval(up: Up) -> None:
    script = f'eval "$({sys.executable} -m app env)"; echo "$API $TOKEN"; command -v python'
    shell = subprocess.run(
        ["sh", "-c", script], env=up.env, cwd=up.folder, capture_output=True, text=True, check=True
    )
    first, python = shell.stdout.splitlines()
    assert first == f"http://127.0.0.1:{up.port} {up.token}"
    assert python == str(Path(sys.executable).parent / "python")


def test_nobody_there_is_one_clear_line(up: Up, tmp_path: Path) -> None:
    nowhere = clean_environment(DATA_DIR=str(tmp_path / "none"))
    done = run_tailrun("ls", env=nowhere, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    down = run_tailrun("ls", "--url", "http://127.0.0.1:9", "--token", "x", env=nowhere, cwd=tmp_path)
    assert (down.returncode, "does not answer" in down.stderr) == (1, True)
    denied = up.run("ls", "--token", "wrong")
    assert (denied.returncode, len(denied.stderr.splitlines())) == (1, 1)


def test_an_unknown_run_is_one_clear_line(up: Up) -> None:
    for command in (["show", "nosuchrun"], ["logs", "-f", "0" * 36], ["cancel", "../../etc"]):
        done = up.run(*command)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr


class Terminal:
    """A command in a pseudo terminal: it believes that somebody is watching."""

    def __init__(self, up: Up, *args: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(up.folder)
            os.execve(sys.executable, [sys.executable, "-m", "app", *args], up.env | {"TERM": "xterm"})
        self.shown = ""

    def read_until(self, text: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            try:
                self.shown += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                assert text in self.shown, self.shown

    def exit_code(self) -> int:
        try:
            while piece := os.read(self.fd, 4096):
                self.shown += piece.decode(errors="replace")
        except OSError:
            pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_shows_levels_colours_and_a_spinner(up: Up) -> None:
    terminal = Terminal(up, "run", "--", "sh", "-c", "sleep 1; echo WARNING careful >&2; echo fine")
    assert terminal.exit_code() == 0
    assert "running · " in terminal.shown
    assert "\x1b[33mWARNING careful" in terminal.shown
    assert "   info\x1b[0m \x1b[2m│\x1b[0m fine" in terminal.shown
    assert "✔ succeeded" in terminal.shown


def test_ctrl_c_detaches_and_says_how_to_cancel(up: Up) -> None:
    run_id = made(up, "--", "sh", "-c", "echo started; sleep 60")
    terminal = Terminal(up, "logs", "-f", run_id)
    terminal.read_until("started")
    os.write(terminal.fd, b"\x03")
    assert terminal.exit_code() == 130
    assert f"tailrun cancel {run_id[:8]}" in terminal.shown
    assert json.loads(up.run("show", run_id, "--json").stdout)["status"] == "running"
    up.run("cancel", run_id)


def test_a_watched_queue_ends_with_ctrl_c(up: Up) -> None:
    terminal = Terminal(up, "queue", "--watch", "--every", "0.1")
    terminal.read_until("LEASE LEFT")
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.exit_code() == 0


def test_completion_is_offered(up: Up) -> None:
    """Which shell it is for is told, not guessed: this test has none around it."""
    env = {**up.env, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = run_tailrun("--show-completion", "bash", env=env, cwd=up.folder)
    assert done.returncode == 0
    assert "_TAILRUN_COMPLETE" in done.stdout


def test_a_script_runs_as_the_program_that_it_is(up: Up) -> None:
    """Its executable bit goes along, there and back."""
    script = up.folder / "run.sh"
    script.write_text("#!/bin/sh\necho ran; cp run.sh copy.sh; chmod -x run.sh\n")
    script.chmod(0o755)
    done = up.run("run", "--", "./run.sh")
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    for name, bit in (("copy.sh", 0o100), ("run.sh", 0)):
        assert up.run("files", "get", "last", name, "-o", f"got-{name}").returncode == 0
        assert (up.folder / f"got-{name}").stat().st_mode & 0o100 == bit


@pytest.mark.parametrize(("script", "code"), [("true", 0), ("exit 7", 7)])
def test_following_no_line_of_an_ended_run_has_its_exit_code(up: Up, script: str, code: int) -> None:
    run_id = made(up, "--", "sh", "-c", script)
    for words in (["logs", "-f"], ["logs", "-f", "-n", "0"], ["tail"], ["tail", "-n", "0"]):
        assert up.run(*words, run_id).returncode == code, words


def test_tail_follows_the_last_run(up: Up) -> None:
    made(up, "--", "sh", "-c", "echo one; echo two")
    done = up.run("tail")
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n")


def test_a_schedule_brings_its_files_along(up: Up) -> None:
    """Each of its runs begins with them, though they are gone here by then; nothing is left held."""
    job = up.folder / "nightly.py"
    job.write_text("print('by night')")
    created = up.run("schedule", "create", "* * * * *", "--label", "by=night", "--", "python3", "nightly.py")
    assert created.returncode == 0, created.stderr
    assert "uploaded nightly.py as nightly.py" in created.stderr
    job.unlink()
    schedule_id = created.stdout.strip()
    with closing(sqlite3.connect(up.data / "tailrun.db", timeout=60)) as db, db:
        db.execute("UPDATE schedules SET next_at = 1")  # rather than to wait for the full minute
    with Client(f"http://127.0.0.1:{up.port}", up.token) as client:

        def last() -> str | None:
            return next(s for s in client.schedules()["items"] if s["schedule_id"] == schedule_id)[
                "last_run_id"
            ]

        until(lambda: last() is not None, 120)
        run_id = last()
        assert client.list(status="created")["items"] == []
    assert run_id is not None
    assert up.run("schedule", "drop", schedule_id).returncode == 0
    done = up.run("logs", "-f", run_id)
    assert (done.returncode, done.stdout) == (0, "by night\n")


def test_a_schedule_of_a_task_can_be_made_and_listed(up: Up) -> None:
    words = ("schedule", "create", "@daily", "--type", "agent/run", "--param", "input=hello")
    created = up.run(*words)
    assert created.returncode == 0, created.stderr
    listed = up.run("schedule", "list")
    assert (listed.returncode, "agent/run input=hello" in listed.stdout) == (0, True), listed.stderr
    assert up.run("schedule", "drop", created.stdout.strip()).returncode == 0
