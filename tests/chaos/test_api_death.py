"""The API is killed and restarted: runs go on, and watchers resume where they were."""

from __future__ import annotations

import signal
from pathlib import Path

from support.stack import Stack, seqs, shell, wait_for


def test_watchers_resume_after_the_api_was_killed(tmp_path: Path, sqlite_url: str) -> None:
    stack = Stack(tmp_path, sqlite_url)
    try:
        run_id = stack.submit(shell('for i in $(seq 1 60); do echo "tick $i"; sleep 0.1; done'))
        watchers = [stack.watch(run_id) for _ in range(10)]
        for line in ("tick 5", "tick 25"):
            for watcher in watchers:
                watcher.wait_line(line)
            stack.api.kill()
            stack.api.start()
        run = stack.wait_end(run_id)
        for watcher in watchers:
            assert seqs(watcher.finish()) == list(range(1, run["last_seq"] + 1))
            assert watcher.reconnects >= 2
    finally:
        stack.close()


def test_sigterm_ends_open_streams_cleanly_and_soon(tmp_path: Path, sqlite_url: str, slack: float) -> None:
    stack = Stack(tmp_path, sqlite_url)
    try:
        run_id = stack.submit(shell("echo up; sleep 6000"))
        watchers = [stack.watch(run_id) for _ in range(50)]
        for watcher in watchers:
            watcher.wait_line("up")
        stack.api.signal(signal.SIGTERM)
        wait_for(lambda: stack.api.popen.poll() is not None, "the API to end", 3 * slack)
        assert stack.api.popen.returncode == 0
        stack.api.start()
        stack.wait_ready()
        stack.cancel(run_id)
        for watcher in watchers:
            assert watcher.finish()[-1]["status"] == "cancelled"
    finally:
        stack.close()
