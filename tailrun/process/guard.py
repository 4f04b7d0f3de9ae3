r"""The guard: a small process between the worker and one tool, which outlives neither's death.

Why: a program must not run on beside its successor when its worker is killed or frozen, and a
program that ended must not leave children behind. Parent-death signals miss grandchildren and
nothing tells a process that its parent was stopped; so each local tool gets a guard, which

- starts the tool in a process group of its own, its output going straight to the worker's pipes;
- on Linux is the child sub-reaper, so that every descendant, whatever sessions and forks it went
  through, comes back to it; elsewhere it knows the tool's process group only;
- kills them all when the control pipe closes, when no word came for the lease, when it is told
  to, and when the tool ended and left some behind;
- removes the tool's temporary folder, however it ended.

It runs as a script (`python -I -S guard.py <status fd> <temporary folder>`) and starts once per
tool, so it imports the standard library only, and little of it: about 15 ms.

Control pipe (standard input): `<length>\n`, then that many bytes: NUL-separated working folder,
lease in seconds, grace in seconds, limits (CPU seconds, bytes of
memory, bytes of a file; 0: none), number of arguments, arguments, `NAME=value` pairs. After
that single bytes, the words below. Status pipe: JSON lines, `{"started": pid}` or
`{"failed": errno, "at": "chdir"|"exec"|…}`, `{"exited": code, "signal": n|null, "asked": by whom|"",
"wall_s"}` when the tool itself ended, and last `{"done": true, "cpu_s", "max_rss", "left"}`.
"""

# pathlib takes 10 ms to import:
# ruff: noqa: PTH101, PTH102, PTH108, PTH114, PTH123, PTH208
from __future__ import annotations

import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing's own flag costs its import
    from collections.abc import Callable

HEARTBEAT = b"h"  # the worker still owns the run
TERMINATE = b"t"  # SIGTERM to the group; after the grace SIGKILL to all
KILL = b"k"  # SIGKILL to all at once
FINISH = b"f"  # the tool ended a while ago: end what it left behind

_SWEEP_S = 0.5  # between SIGTERM and SIGKILL for what the tool left behind
_GIVE_UP_S = 5.0  # how long what can't be killed (another user's, or stuck in the kernel) is waited for
_TICK_S = 0.02
_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Run one tool from the worker's request to the end of its last descendant."""
    status, tmp = int(sys.argv[1]), os.fsencode(sys.argv[2])
    os.set_inheritable(status, False)
    control = os.dup(0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    try:
        os.mkdir(tmp, 0o700)
        request = _read_request(control)
        if request is not None:
            _Guard(control, status, request).run(null, tmp)
    except OSError as error:
        _tell(status, f'{{"failed": {error.errno or 0}, "at": "guard"}}')
    finally:
        remove_tree(tmp)
    os._exit(0)


class _Request:
    """The worker's request."""

    def __init__(self, raw: bytes) -> None:
        self.cwd, lease, grace, limits, count, *rest = raw.split(b"\0")
        self.lease_s, self.grace_s = float(lease), float(grace)
        self.limits = [int(limit) for limit in limits.split()]
        self.argv, pairs = rest[: int(count)], rest[int(count) :]
        self.env = dict(pair.split(b"=", 1) for pair in pairs)


def _read_request(control: int) -> _Request | None:
    """Read the request; None when the worker ended before it was complete."""
    head = b""
    while not head.endswith(b"\n"):
        byte = os.read(control, 1)
        if not byte:
            return None
        head += byte
    length, raw = int(head), bytearray()
    while len(raw) < length:
        piece = os.read(control, length - len(raw))
        if not piece:
            return None
        raw += piece
    return _Request(bytes(raw))


class _Guard:
    """One tool and its descendants, from start to last."""

    def __init__(self, control: int, status: int, request: _Request) -> None:
        self._control, self._status, self._request = control, status, request
        self._tool = 0
        self._tool_alive = False
        self._stopping = False
        self._asked_by = ""
        self._heard = self._started = time.monotonic()
        self._asked_to_end = self._term_all = False
        self._kill_at: float | None = None
        self._kill_since: float | None = None
        self._cpu_s = 0.0
        self._max_rss = 0

    def run(self, null: int, tmp: bytes) -> None:
        wake = self._catch_signals()
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        if not self._start():
            return
        os.dup2(null, 1)
        os.dup2(null, 2)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        left = False
        while not self._reap():
            for fd, _ in poll.poll(max(0.0, self._timeout()) * 1000):
                if fd == wake:
                    _drain(wake)
                elif not self._listen():
                    poll.unregister(fd)
            if left := not self._act(time.monotonic()):
                break
        remove_tree(tmp)
        _tell(
            self._status,
            f'{{"done": true, "cpu_s": {self._cpu_s:.6f}, "max_rss": {self._max_rss}, '
            f'"left": {str(left).lower()}}}',
        )

    def _catch_signals(self) -> int:
        """Make child deaths and polite signals wake the loop; return the fd that they arrive on."""
        wake, write = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._asked)
        return wake

    def _asked(self, number: int, frame: object) -> None:
        self._asked_to_end = True

    def _start(self) -> bool:
        """Fork and exec the tool; an error before the program runs goes to the status pipe."""
        failure, failed = os.pipe()
        guard = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become(self._request, failed, guard)
        os.close(failed)
        with open(failure, "rb") as pipe:
            error = pipe.read()
        if error:
            os.waitpid(pid, 0)
            number, _, where = error.decode().partition(" ")
            _tell(self._status, f'{{"failed": {number}, "at": "{where}"}}')
            return False
        self._tool, self._tool_alive = pid, True
        _tell(self._status, f'{{"started": {pid}}}')
        return True

    def _listen(self) -> bool:
        """Handle the worker's commands; False once it has ended."""
        words = os.read(self._control, 4096)
        self._heard = time.monotonic()
        if not words:
            self._kill("worker")
        elif KILL in words:
            self._kill("request")
        elif TERMINATE in words:
            self._terminate("request")
        elif FINISH in words and not self._tool_alive:
            self._sweep()
        return bool(words)

    def _timeout(self) -> float:
        now = time.monotonic()
        if self._kill_since is not None:
            return _TICK_S
        lease = self._heard + self._request.lease_s - now
        return lease if self._kill_at is None else min(lease, self._kill_at - now)

    def _act(self, now: float) -> bool:
        """Do what is due; False when what is left can't be killed."""
        if self._asked_to_end:
            self._terminate("signal")
        if self._stopping and not self._tool_alive:
            self._sweep()
        if self._kill_since is None and now >= self._heard + self._request.lease_s:
            self._kill("lease")
        if self._kill_since is None and self._kill_at is not None and now >= self._kill_at:
            self._kill("grace")
        if self._kill_since is None:
            return True
        self._signal_all(signal.SIGKILL)
        return now < self._kill_since + _GIVE_UP_S

    def _terminate(self, by: str) -> None:
        """Ask the tool's group to end; count the grace here, whatever becomes of the worker."""
        if self._stopping or self._kill_since is not None:
            return
        self._stopping = True
        self._asked_by = self._asked_by or by
        self._kill_at = time.monotonic() + self._request.grace_s
        if self._tool_alive:
            _signal_group(self._tool, signal.SIGTERM)
            _signal_group(self._tool, signal.SIGCONT)

    def _sweep(self) -> None:
        """End what outlived the tool."""
        if self._term_all or self._kill_since is not None:
            return
        self._term_all = True
        self._kill_at = time.monotonic() + _SWEEP_S
        self._signal_all(signal.SIGTERM)
        self._signal_all(signal.SIGCONT)

    def _kill(self, by: str) -> None:
        if self._kill_since is None:
            self._asked_by = self._asked_by or by
            self._kill_since = time.monotonic()
            self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: int) -> None:
        if self._tool_alive or not _LINUX:
            _signal_group(self._tool, number)
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                continue

    def _reap(self) -> bool:
        """Reap children; True when none is left, for a sub-reaper inherits orphans."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return _LINUX or not _signal_group(self._tool, 0)
            if pid == 0:
                return False
            self._cpu_s += usage.ru_utime + usage.ru_stime
            self._max_rss = max(self._max_rss, usage.ru_maxrss * (1024 if _LINUX else 1))
            if pid == self._tool:
                self._tool_alive = False
                self._tell_exit(os.waitstatus_to_exitcode(status))

    def _tell_exit(self, code: int) -> None:
        exit_code, number = (code, "null") if code >= 0 else (128 - code, str(-code))
        wall_s = time.monotonic() - self._started
        _tell(
            self._status,
            f'{{"exited": {exit_code}, "signal": {number}, '
            f'"asked": "{self._asked_by}", "wall_s": {wall_s:.6f}}}',
        )


def _prctl(option: int, value: int) -> None:
    """Call Linux's prctl(2); do nothing elsewhere."""
    if _LINUX:
        import ctypes  # noqa: PLC0415 - 4 ms that only Linux needs

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _ignore(number: int, frame: object) -> None:
    """Let the signal interrupt the wait, nothing more."""


def _become(request: _Request, failed: int, guard: int) -> None:
    """Turn the forked child into the tool; never returns."""
    where = "start"
    try:
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _limit(request.limits)
        where = "chdir"
        os.chdir(request.cwd)
        where = "exec"
        os.execvpe(request.argv[0], request.argv, request.env)  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(failed, f"{error.errno} {where}".encode())
    finally:
        os._exit(127)


def _limit(limits: list[int]) -> None:
    """Set what is limited; 2 s of CPU time are left for a program that handles SIGXCPU."""
    import resource  # noqa: PLC0415 - after the fork: the tool's start waits for it, not the guard's

    kinds = (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE)
    for kind, limit, spare in zip(kinds, limits, (2, 0, 0), strict=True):
        most = resource.getrlimit(kind)[1] % (1 << 63)  # without a limit it is -1
        if limit and limit < most:
            resource.setrlimit(kind, (limit, min(limit + spare, most)))


def _tell(status: int, line: str) -> None:
    try:
        os.write(status, line.encode() + b"\n")
    except OSError:  # the worker is gone
        return


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        return


def _signal_group(group: int, number: int) -> bool:
    """Signal a process group; False when it is empty."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def descendants(root: int) -> list[int]:
    """Find all living descendants of `root` by their parents in /proc; empty where there is none."""
    children: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if name.isdigit():
            parent = _living_parent(name)
            if parent:
                children.setdefault(parent, []).append(int(name))
    found, todo = list[int](), [root]
    while todo:
        for pid in children.get(todo.pop(), ()):
            found.append(pid)
            todo.append(pid)
    return found


def _living_parent(pid: str) -> int:
    """Return the parent of a process; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return int(fields[1])


def remove_tree(root: bytes) -> None:
    """Remove a folder with all in it, never following links; shutil would cost 15 ms to import."""
    folders = [root]
    for folder in folders:
        try:
            if os.path.islink(folder):
                os.unlink(folder)
                return
            os.chmod(folder, 0o700)
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                _quietly(os.unlink, entry.path)
    for folder in reversed(folders):
        _quietly(os.rmdir, folder)


def _quietly(call: Callable[[bytes], None], path: bytes) -> None:
    try:
        call(path)
    except OSError:  # gone already, or another user's
        return


if __name__ == "__main__":
    main()
