"""Typed tasks from end to end: the example agent as a process, watched, stopped, and its worker killed."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from support.stack import TOKEN, Stack, processes_with, seqs, wait_for
from support.task_stack import EXAMPLE, operate, post, watched, watching, write_types
from websockets.exceptions import ConnectionClosedError

QUESTION = "Analyze all MB attributes for Q1"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("tasks")
    stack = Stack(
        folder,
        f"sqlite:///{folder / 'tailrun.db'}",
        workers=2,
        TASKS_FILE=str(write_types(folder)),
        PROJECTS_KEY=base64.urlsafe_b64encode(os.urandom(32)).decode(),
        JOB_MAX_ATTEMPTS="1",
        CANCEL_GRACE_S="2",
    )
    project = {"db_conn": f"sqlite:///{folder / 'agent.db'}"}
    assert stack.http.put("/v1/projects/shop", json=project).status_code == 201
    yield stack
    stack.close()


def first_event(stack: Stack, run_id: str) -> dict[str, Any]:
    """The first event of the log that is a line."""
    return next(event for event in stack.events(run_id) if event["type"] == "log")


def test_the_shipped_types_share_a_database_on_the_default_project(stack: Stack, tmp_path: Path) -> None:
    """Nothing was set for the project: what seed and import wrote is what the agent reads."""
    assert watched(stack, post(stack, "seed-db", reset=True))[-2:] == [
        "seeded 48 rows of 4 attributes",
        "DONE",
    ]
    subprocess.run([sys.executable, EXAMPLE / "make_xlsx.py", tmp_path / "report.xlsx"], check=True)
    params = {"file_path": "report.xlsx", "main_tab": "MB Attributes", "custom_structure": True}
    held = stack.submit(type="task-context", command="import-excel", params=params, start=False)
    sheet = (tmp_path / "report.xlsx").read_bytes()
    assert stack.http.put(f"/v1/runs/{held}/files/report.xlsx", content=sheet).is_success
    stack.http.post(f"/v1/runs/{held}/start")
    assert watched(stack, held)[-1] == "DONE"
    lines = watched(stack, post(stack, "agent", "run", input=QUESTION, parallel_workers=3))
    assert "15 rows of 4 attributes, 3 workers" in lines
    assert watched(stack, post(stack, "seed-db", reset=True))[1] == "reset: 60 rows removed"


def test_the_operation_of_the_source_runs_and_streams(stack: Stack) -> None:
    """The source's body, with a token and nothing else; polled and streamed."""
    operation = operate(stack, "demo", permission_id=4096)
    shown = ended(stack, operation)
    assert (shown["status"], shown["exit_code"]) == ("succeeded", 0)
    assert shown["logs"][1:3] == ["operation of 'demo'", "permission_id: 4096"]
    stream = stack.http.get(f"/api/v1/operations/{operation}/stream").text
    events = [orjson.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    assert [event["content"] for event in events if event["type"] == "log"] == shown["logs"]
    assert events[-1]["type"] == "end"
    asked = stack.http.get(f"/v1/runs/{operation}/files/operation.json").json()
    assert asked == {"app_signature": "demo", "request": {"permission_id": 4096}}


# -- the five ways through ------------------------------------------------------------------


def test_seed_import_and_analyse(stack: Stack, tmp_path: Path) -> None:
    """POST, watch, lines, DONE: a database seeded, a sheet of the run's own imported, a report made."""
    seeding = post(stack, "seed-db", project="shop", reset=True)
    assert watched(stack, seeding)[-2:] == ["seeded 48 rows of 4 attributes", "DONE"]
    assert orjson.loads(first_event(stack, seeding)["content"]) == [
        "python",
        "agent.py",
        "seed-db",
        "--reset",
    ]

    subprocess.run([sys.executable, EXAMPLE / "make_xlsx.py", tmp_path / "report.xlsx"], check=True)
    params = {"file_path": "in/report.xlsx", "main_tab": "MB Attributes", "custom_structure": True}
    body = {"type": "task-context", "command": "import-excel", "params": params, "project": "shop"}
    held = stack.submit(**body, start=False)
    sheet = (tmp_path / "report.xlsx").read_bytes()
    assert stack.http.put(f"/v1/runs/{held}/files/in/report.xlsx", content=sheet).is_success
    stack.http.post(f"/v1/runs/{held}/start")
    lines = watched(stack, held)
    assert lines[-2:] == ["imported 12 values of sheet 'MB Attributes'", "DONE"]
    assert orjson.loads(lines[0])[4:] == [
        "in/report.xlsx",
        "--main-tab",
        "MB Attributes",
        "--custom-structure",
    ]

    task = post(stack, "agent", "run", project="shop", input=QUESTION, parallel_workers=3)
    lines = watched(stack, task)
    assert orjson.loads(lines[0])[2:] == ["agent", "run", "--input", QUESTION, "--parallel-workers", "3"]
    assert lines[1] == f"input: {QUESTION}"
    assert "15 rows of 4 attributes, 3 workers" in lines
    assert lines[-2:] == ["report: 4 attributes in report.json and report.csv", "DONE"]
    report = stack.http.get(f"/v1/runs/{task}/files/report.json").json()
    assert report["attributes"]["MB revenue"]["count"] == 4
    shown = stack.http.get(f"/tasks/{task}").json()
    assert (shown["task_id"], shown["status"], shown["exit_code"]) == (task, "succeeded", 0)


def test_a_late_client_and_two_at_once_get_the_same(stack: Stack) -> None:
    """Whoever watches, whenever: every line, in the same order, and the last word."""
    task = post(stack, "agent", "run", input=QUESTION, parallel_workers=2, pace=0.1)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: watched(stack, task), range(2))
    late = watched(stack, task)
    assert first == second == late
    assert late[-1] == "DONE"
    assert sum(line.startswith("worker ") for line in late) == 12
    with watching(stack, task, "?format=json") as socket:
        events = [orjson.loads(text) for text in socket]
    assert seqs(events) == list(range(1, len(events) + 1))
    assert (events[-1]["type"], events[-1]["status"]) == ("end", "succeeded")


@pytest.mark.parametrize("kind", ["silent", "deaf"])
def test_stop_ends_the_whole_tree(stack: Stack, kind: str) -> None:
    """A program that prints nothing, and one that ignores SIGTERM with a child that does too: STOPPED."""
    mark = uuid.uuid4().hex
    task = post(stack, kind, mark=mark)
    with watching(stack, task) as socket, watching(stack, task) as other:
        wait_for(lambda: processes_with(mark) or kind == "deaf", "the program", 60)
        if kind == "deaf":
            while socket.recv(60) != "deaf":
                pass
        socket.send("STOP")
        lines = [str(line) for line in socket]
        assert [str(line) for line in other][-1] == lines[-1] == "STOPPED"
        assert socket.close_code == 1000
    assert processes_with(mark) == []
    assert stack.run(task)["status"] == "cancelled"


def test_a_killed_worker_costs_nothing_but_time(stack: Stack) -> None:
    """SIGKILL in the middle: another worker runs the task again, and DONE comes once."""
    task = post(stack, "agent", "run", input=QUESTION, parallel_workers=2, pace=0.5)
    with watching(stack, task) as socket:
        while not str(socket.recv(60)).startswith("worker "):
            pass
        owner = stack.owner(task)
        owner.kill()
        lines = [str(line) for line in socket]
    owner.start()
    assert [line for line in lines if line in {"DONE", "STOPPED"}] == ["DONE"]
    assert lines[-1] == "DONE"
    run = stack.run(task)
    assert (run["status"], run["attempt"], run["redeliveries"]) == ("succeeded", 2, 1)
    assert [event["type"] for event in stack.events(task)].count("end") == 1


# -- what a project gives -------------------------------------------------------------------


def test_a_program_gets_its_project_and_no_line_tells_its_secrets(stack: Stack) -> None:
    project = {
        "db_conn": "postgresql://me:pass-of-db@db/app",
        "paths": {"uploads": "/data/uploads"},
        "env": {"REGION": "eu"},
        "secrets": {"MODEL_KEY": "key-of-model"},
    }
    assert stack.http.put("/v1/projects/bank", json=project).is_success
    task = post(stack, "tells", project="bank")
    lines = watched(stack, task)
    assert lines[1:] == ["***", "*** ***", "/data/uploads eu bank", "workspace True", "DONE"]
    text = stack.http.get(f"/v1/runs/{task}/logs").text + stack.http.get(f"/v1/runs/{task}/steps").text
    assert not any(secret in text for secret in ("pass-of-db", "key-of-model"))


def test_a_task_whose_project_is_gone_fails_by_name(stack: Stack) -> None:
    """It was there when the task came in; the worker finds it gone, and no further attempt would help."""
    assert stack.http.put("/v1/projects/brief", json={}).is_success
    held = stack.submit(type="mute", project="brief", start=False)
    assert stack.http.delete("/v1/projects/brief").status_code == 204
    stack.http.post(f"/v1/runs/{held}/start")
    assert watched(stack, held)[-1].startswith("FAILED: project_unavailable: there is no project 'brief'")


# -- operations: the seven ways in which one goes wrong ------------------------------------------


def ended(stack: Stack, operation: str) -> dict[str, Any]:
    stack.wait_end(operation)
    return stack.http.get(f"/api/v1/operations/{operation}").json()


def test_an_operation_that_does_not_start(stack: Stack) -> None:
    shown = ended(stack, operate(stack, "missing"))
    assert (shown["status"], shown["error"]["code"]) == ("failed", "start_failed")
    assert "no-such-program" in shown["error"]["message"]
    assert watched(stack, shown["operation_id"])[-1].startswith("FAILED: start_failed: ")


def test_an_operation_that_exits_at_once_shows_its_lines(stack: Stack) -> None:
    shown = ended(stack, operate(stack, "quick"))
    assert (shown["error"]["code"], shown["exit_code"]) == ("exit_nonzero", 3)
    assert shown["logs"][-1] == "no permission"
    assert not shown["truncated"]
    assert shown["log_size"] > 0


def test_an_operation_that_prints_nothing(stack: Stack) -> None:
    shown = ended(stack, operate(stack, "mute"))
    assert shown["status"] == "succeeded"
    assert len(shown["logs"]) == 1  # its argv


def test_an_operation_that_times_out_while_it_is_watched(stack: Stack) -> None:
    operation = operate(stack, "endless")
    lines = watched(stack, operation)
    assert lines[-1] == "TIMEOUT"
    assert "line 0" in lines
    assert ended(stack, operation)["error"]["code"] == "timeout"


def test_an_operation_whose_executor_goes_away(stack: Stack) -> None:
    """What holds the program is killed: the program goes with it, and the operation says why it failed."""
    operation = operate(stack, "guarded")
    with watching(stack, operation) as socket:
        while not (line := str(socket.recv(60))).startswith("guard "):
            pass
        os.kill(int(line.split()[1]), signal.SIGKILL)
        assert str(list(socket)[-1]).startswith("FAILED: executor_unavailable: ")
    assert ended(stack, operation)["error"]["code"] == "executor_unavailable"


def test_an_operation_that_nobody_made(stack: Stack) -> None:
    nobody = uuid.uuid4()
    for path in (f"/api/v1/operations/{nobody}", f"/api/v1/operations/{nobody}/stream"):
        answer = stack.http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    with watching(stack, str(nobody)) as socket:
        with pytest.raises(ConnectionClosedError):
            socket.recv(60)
        assert (socket.close_code, socket.close_reason) == (4404, f"There is no run '{nobody}'.")


def test_an_operation_whose_stream_is_cut(stack: Stack) -> None:
    """A client that comes back with the last id it saw gets what follows, once, to the end."""
    operation = operate(stack, "counts")
    seen: list[dict[str, Any]] = []
    cuts = -1
    while not seen or seen[-1]["type"] != "end":
        headers = {"Last-Event-ID": str(seen[-1]["seq"])} if seen else {}
        seen += _some_events(stack, f"/api/v1/operations/{operation}/stream", headers, 5)
        cuts += 1
    assert seqs(seen) == list(range(1, len(seen) + 1))
    assert cuts > 3
    lines = [event["content"] for event in seen if event["type"] == "log"]
    assert lines[1:] == [f"line {n}" for n in range(30)]


def _some_events(stack: Stack, path: str, headers: dict[str, str], most: int) -> list[dict[str, Any]]:
    """Read a few events of a stream, then drop the connection."""
    found: list[dict[str, Any]] = []
    headers = {**stack.http.headers, **headers}
    with httpx2.stream("GET", stack.url + path, headers=headers, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                found.append(orjson.loads(line[6:]))
            if len(found) == most:
                break
    return found


# -- from the command line ------------------------------------------------------------------


def tailrun(stack: Stack, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "TAILRUN_URL": stack.url, "TAILRUN_TOKEN": TOKEN, "PYTHONPATH": root}
    command = [sys.executable, "-m", "app", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=100, check=False)


def test_from_the_command_line(stack: Stack, tmp_path: Path) -> None:
    """Parameters are read as declared, a file named by one is brought along, mistakes are named."""
    listed = tailrun(stack, "tasks", cwd=tmp_path).stdout
    assert "agent/run" in listed
    assert "input" in listed
    (tmp_path / "data").mkdir()
    subprocess.run([sys.executable, EXAMPLE / "make_xlsx.py", tmp_path / "data/r.xlsx"], check=True)
    words = ("--param", "file_path=data/r.xlsx", "--param", "custom_structure=true", "--project", "shop")
    done = tailrun(stack, "run", "--type", "task-context/import-excel", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "imported 12 values of sheet 'MB Attributes'" in done.stdout
    wrong = tailrun(stack, "run", "--type", "agent/run", "-p", "inptu=x", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "Did you mean 'input'?" in wrong.stderr
    number = tailrun(stack, "run", "--type", "agent/run", "-p", "parallel_workers=x", cwd=tmp_path)
    assert number.returncode == 2
    assert "--param parallel_workers takes a number" in number.stderr
