"""The program that a tool pod is for: started in a process group of its own, and all of it ended.

The wrapper is PID 1 of its container, so orphans become its children and are reaped here, and at
the end nothing may be left: not of the program's group, and, where we really are PID 1, no other
process either. Elsewhere (a shared process namespace, a test) only the group is ours to kill.
"""

from __future__ import annotations

import errno
import os

from toolbox.signals import SIGCHLD, SIGINT, SIGKILL, SIGPIPE, SIGTERM, SIGXFSZ

NOT_FOUND, NOT_EXECUTABLE = 127, 126
_NAME_BYTES = 100
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
# What Python ignores would stay ignored in the program.
_DEFAULTS = (SIGPIPE, SIGXFSZ, SIGTERM, SIGINT, SIGCHLD)


class StartFailed(Exception):
    """The program never ran; `code` is what a shell would exit with."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Program:
    """One started program. Times in seconds, `max_rss` in bytes."""

    def __init__(self, argv: list[str], env: dict[str, str], *, stdout: int, stderr: int) -> None:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
        ]
        try:
            self.pid = os.posix_spawnp(
                argv[0], argv, env, file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=_DEFAULTS
            )
        except OSError as error:
            code = NOT_FOUND if error.errno in _MISSING else NOT_EXECUTABLE
            raise StartFailed(code, f"{argv[0]}: {error.strerror}") from None
        except ValueError as error:  # a NUL in an argument, or an empty name
            raise StartFailed(NOT_EXECUTABLE, f"{argv[0]}: {error}") from None
        self.status: int | None = None
        self.cpu_s = 0.0
        self.max_rss = 0
        self.left_behind: list[str] = []
        """What it left in the background, and what was ended with it; once it has ended."""

    @property
    def signal(self) -> int | None:
        """The signal that ended it, if one did."""
        return os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else None

    @property
    def code(self) -> int:
        """Its exit code, 128 + n after signal n."""
        status = self.status or 0
        return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def kill(self, number: int) -> None:
        """Send a signal to the program's group."""
        _kill(-self.pid, number)

    def reap(self) -> None:
        """Reap children. When the program itself has ended, everything that it left behind is killed."""
        while (pid := _dead_child()) is not None:
            if pid == self.pid:
                self._end_all()  # before its number is free for another process
            _, status, usage = os.wait4(pid, 0)
            self.cpu_s += usage.ru_utime + usage.ru_stime
            self.max_rss = max(self.max_rss, usage.ru_maxrss * 1024)
            if pid == self.pid:
                self.status = status

    def _end_all(self) -> None:
        self.left_behind = _others(self.pid)
        self.kill(SIGKILL)
        if os.getpid() == 1:
            _kill(-1, SIGKILL)


def _others(group: int) -> list[str]:
    """Return the beginnings of the command lines of all that a dead program leaves behind."""
    found: list[str] = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():  # noqa: PTH112, PTH208 - as above
        if name.isdigit() and int(name) not in {group, os.getpid()}:
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - pathlib costs 8 ms
                    state, _, its_group = file.read().rpartition(b")")[2].split()[:3]
                with open(f"/proc/{name}/cmdline", "rb") as file:  # noqa: PTH123
                    words = file.read(_NAME_BYTES).replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if state not in b"ZX" and (int(its_group) == group or os.getpid() == 1):
                found.append(words.strip())
    return found


def _dead_child() -> int | None:
    """Return a child that died and is not buried yet."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found else None


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # contextlib would cost 3 ms of start-up
        return
