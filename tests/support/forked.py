"""Processes of API, worker and command line, forked from one that has imported them already.

A start from nothing costs one to two seconds of CPU, nearly all of it imports, and hundreds of tests
start processes. Each of these is a process of its own, with its own session, environment and log; it
is killed, frozen and waited for like any other. When the tests end, however they end, the connection
to the parent is closed, and it kills what it still has.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from functools import cache
from pathlib import Path
from typing import Any

_PRELOADED = ("app.main", "app.worker.main", "app.cli", "tailrun.client", "tailrun.commands.follow")


class ForkedProcess:
    """What `subprocess.Popen` is for a process that another one has started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Parent:
    """The connection to the process that forks: requests one way, pids and exit codes the other."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._started = threading.Condition()
        self._replies: list[int] = []
        self._processes: dict[int, ForkedProcess] = {}
        self._asking = threading.Lock()
        root = Path(__file__).parents[2]
        with theirs:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", f"from support.forked import serve; serve({theirs.fileno()})"],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, code: str, env: dict[str, str], out: Path, err: Path, cwd: Path) -> ForkedProcess:
        request = json.dumps({"code": code, "env": env, "out": str(out), "err": str(err), "cwd": str(cwd)})
        with self._asking, self._started:
            self._socket.sendall(request.encode() + b"\n")
            assert self._started.wait_for(lambda: self._replies, 60), "the process that forks did not answer"
            return self._processes[self._replies.pop()]

    def _listen(self) -> None:
        for line in self._socket.makefile("rb"):
            pid, status = json.loads(line)
            if status is None:
                with self._started:
                    self._processes[pid] = ForkedProcess(pid)
                    self._replies.append(pid)
                    self._started.notify()
            else:
                process = self._processes.pop(pid)
                process.returncode = status
                process.ended.set()


@cache
def _parent(of: int) -> _Parent:
    """Return the one parent of this test process (`of` is its pid)."""
    return _Parent()


def start_forked(
    code: str, env: dict[str, str], out: Path, *, err: Path | None = None, cwd: Path | None = None
) -> ForkedProcess:
    """Run `code` as the main program of a new process, which appends to `out` and `err` (else `out` too)."""
    out.touch()
    return _parent(os.getpid()).start(code, env, out, err or out, cwd or Path.cwd())


# -- the process that forks --------------------------------------------------------------------


def serve(fd: int) -> None:
    """Fork on request until the connection is closed; kill what is left then."""
    for name in _PRELOADED:
        __import__(name)
    gc.freeze()
    assert threading.active_count() == 1, "a fork would lose the other threads"
    with socket.socket(fileno=fd) as connection:
        _Forker(connection).run()


def _wake(*_: object) -> None:
    """Do nothing: with a handler, the signal writes to the wake-up pipe."""


class _Forker:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._children: set[int] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def run(self) -> None:
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        buffer = b""
        while True:
            readable, _, _ = select.select([self._connection, self._wake_read], [], [])
            if self._wake_read in readable:
                os.read(self._wake_read, 4096)
                self._reap()
            if self._connection in readable:
                data = self._connection.recv(1 << 16)
                if not data:
                    break
                *requests, buffer = (buffer + data).split(b"\n")
                for request in requests:
                    self._fork(json.loads(request))
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _fork(self, request: dict[str, Any]) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(self._child(request))
        self._children.add(pid)
        self._tell(pid, None)

    def _reap(self) -> None:
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._children.discard(pid)
                self._tell(pid, os.waitstatus_to_exitcode(status))

    def _tell(self, pid: int, status: int | None) -> None:
        self._connection.sendall(json.dumps([pid, status]).encode() + b"\n")

    def _child(self, request: dict[str, Any]) -> int:
        """Become the process that was asked for; return its exit code."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        self._connection.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        nothing = os.open(os.devnull, os.O_RDONLY)
        out, err = (
            os.open(request[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) for name in ("out", "err")
        )
        for source, target in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
            os.close(source)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        code: Any = 0
        try:
            exec(request["code"], {"__name__": "__main__"})
        except SystemExit as end:
            code = end.code
        except BaseException:  # noqa: BLE001 - the process ends here, as the interpreter would end it
            traceback.print_exc()
            code = 1
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined] - what the interpreter does at its end
            sys.stdout.flush()
            sys.stderr.flush()
        return code if isinstance(code, int) else int(code is not None)
