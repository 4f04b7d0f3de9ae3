"""What README and documents show is typed here as it is written, against one real `up`.

Every command of a fenced `sh` block and every `python` block is either run, or listed below with the reason
why it is not run here and, where there is one, the test that does it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.up_process import Up, until

import tailrun

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("helm/**/*.md"),
    ]
    if path.name != "CHANGELOG.md"
)

NOT_TYPED = [
    (
        r"make (demo|up|test|check|bench)\b|\.ci/run",
        "takes minutes; test_demo.py, test_make_setup.py and the CI type them",
    ),
    (r"WORKER_CONCURRENCY=4 \.venv/bin/tailrun up", "is the `up` that everything here runs on"),
    (r"(\./deploy\.sh|\./verify\.sh) ", "needs a cluster; test_operating_docs.py and tests/cluster"),
    (
        r"(kubectl|kind|helm|docker) ",
        "needs a cluster or a container engine; test_operating_docs.py, tests/deploy",
    ),
    (r"sh scripts/build_image\.sh ", "builds an image; tests/images"),
    (r"export KUBECONFIG=|\.venv/bin/python -m pytest -m deep", "needs a cluster; tests/cluster"),
    (r"tailrun models", "needs a model; test_models_command.py"),
    (r"UPSTASH_\w+=", "needs a service; test_upstash.py"),
]
"""Commands that are not run here, by how they begin."""

PYTHON = {
    "docs/library.md": "test_library.py runs the three programs",
    "docs/streaming.md": "test_the_client_of_the_docs_prints_the_line",
    "docs/webhooks.md": "test_the_check_of_a_signature_takes_the_right_one_alone",
}
"""Where `python` blocks are, and what runs them."""


@dataclass(frozen=True)
class Block:
    """A fenced block, where it is, and its text without the fence's indentation."""

    document: str
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its commands: lines, put together where a quote or a backslash continues them."""
        found: list[str] = []
        pending = ""
        for line in self.text.splitlines():
            pending += line + "\n"
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:  # an open quote
                continue
            if line.endswith("\\"):
                continue
            if words:
                found.append(pending.rstrip("\n"))
            pending = ""
        assert not pending, f"{self.document}:{self.line}: a quote is not closed"
        return found


def blocks(language: str) -> Iterator[Block]:
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for found in re.finditer(r"^( *)```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
            if found[2] == language:
                body = "\n".join(line.removeprefix(found[1]) for line in found[3].splitlines())
                yield Block(
                    str(path.relative_to(ROOT)), text.count("\n", 0, found.start()) + 1, language, body
                )


def reason(command: str) -> str | None:
    return next((why for pattern, why in NOT_TYPED if re.match(pattern, command)), None)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """An `up` that answers without a token too, for the one line in docs/tasks.md that has none."""
    up = Up(tmp_path_factory.mktemp("docs"), AUTH="off", RETRY_BASE_S="0.01", RETRY_MAX_S="0.01")
    yield up.start()
    assert up.stop() == 0


class Shell:
    """A shell in a clone, in which a document's lines are typed."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.home = up.folder / "clone"
        bin_folder = self.home / ".venv" / "bin"
        bin_folder.mkdir(parents=True, exist_ok=True)
        for name, words in {"tailrun": " -m app", "redis-cli": " -m app redis", "python": ""}.items():
            program = bin_folder / name
            path = "" if name == "python" else f"PYTHONPATH={shlex.quote(str(ROOT))} "
            program.write_text(f'#!/bin/sh\n{path}exec {sys.executable}{words} "$@"\n')
            program.chmod(0o755)
        if not (self.home / "examples").exists():
            (self.home / "examples").symlink_to(ROOT / "examples")
        (self.home / "job.py").write_text("print('job')\nopen('out.txt', 'w').write('x')\n")
        (self.home / "plan.yaml").write_text("- {tool: shell, args: {command: echo plan}}\n")
        self.env = self.environment()
        self.run_id = self.made("run", "--no-follow", "--", "sh", "-c", "echo x | tee out.txt; echo y >&2")
        until(lambda: "succeeded" in up.run("show", self.run_id).stdout)

    def environment(self) -> dict[str, str]:
        """What `eval "$(.venv/bin/tailrun env)"` makes of the environment."""
        script = 'eval "$(.venv/bin/tailrun env)"; export API TOKEN PATH=$PWD/.venv/bin:$PATH; env -0'
        shown = subprocess.run(
            ["bash", "-ec", script],
            cwd=self.home,
            env=self.up.env,
            capture_output=True,
            text=True,
            check=True,
        )
        found = dict(each.split("=", 1) for each in shown.stdout.split("\0") if each)
        assert {"API", "TOKEN"} <= found.keys()
        return found

    def made(self, *words: str) -> str:
        return self.up.run(*words).stdout.strip()

    def dead_run(self) -> str:
        words = "run --no-follow --retry-on exit_nonzero --attempts 2 -- sh -c 'exit 3'"
        run_id = self.made(*shlex.split(words))
        until(lambda: run_id in self.up.run("dead", "list").stdout)
        return run_id

    def type(self, command: str, created: str) -> subprocess.CompletedProcess[str]:
        """Type one command, as it is written but for the names that have to be put in."""
        run_id = self.dead_run() if re.match(r"tailrun dead \w+ RUN", command) else self.run_id
        command = re.sub(r"\bRUN\b(?!\})(?<!\$RUN)", run_id, command).replace("<run_id>", created)
        command = command.replace("/tmp/", f"{self.home}/").replace("…", "x")
        if "--watch" in command:
            return self.type_and_end(command)
        return subprocess.run(
            ["bash", "-ec", command],
            cwd=self.home,
            env=self.env | {"RUN": run_id},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def type_and_end(self, command: str) -> subprocess.CompletedProcess[str]:
        """Type what runs until it is ended, and end it once it has shown something."""
        shown = self.home / "watched"
        with shown.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.home, env=self.env, stdout=out, stderr=out
            )
        try:
            until(lambda: shown.stat().st_size > 0 or process.poll() is not None)
        finally:
            process.terminate()
        code = process.wait(60)
        return subprocess.CompletedProcess(command, max(code, 0), shown.read_text(), "")


def settings(command: str) -> str:
    """`NAME=value` lines are given to a command that reads them all."""
    words = shlex.split(command, comments=True)
    if all(re.match(r"[A-Z_]+=", word) for word in words):
        return f"env {shlex.join(words)} tailrun config"
    return command


def test_every_command_of_the_documents_works(up: Up) -> None:
    """Each is typed in the order of its document, exits with 0, and gets no error as an answer."""
    shell = Shell(up)
    failed: list[str] = []
    typed = 0
    for block in blocks("sh"):
        created = shell.run_id
        for command in block.commands:
            if reason(command):
                continue
            done = shell.type(settings(command), created)
            typed += 1
            if found := re.search(r'"(?:run_id)": ?"([0-9a-f-]{36})"', done.stdout):
                created = found[1]
            if done.returncode or re.match(r'\{"error"', done.stdout):
                failed.append(
                    f"{block.document}:{block.line}: {command}\n{done.stdout[-600:]}{done.stderr[-600:]}"
                )
    assert "\n\n".join(failed) == ""
    assert typed > 30


def test_each_reason_not_to_type_a_command_is_needed() -> None:
    commands = [command for block in blocks("sh") for command in block.commands]
    assert [
        pattern for pattern, _ in NOT_TYPED if not any(re.match(pattern, each) for each in commands)
    ] == []


def test_python_blocks_are_where_a_test_runs_them() -> None:
    assert {block.document for block in blocks("python")} == PYTHON.keys()


def only_block(document: str, language: str) -> str:
    (found,) = [block.text for block in blocks(language) if block.document == document]
    return found


def client_examples() -> dict[str, str]:
    (docstring,) = re.findall(
        r"^from tailrun import Client\n.*?\n\n(?=The )", tailrun.__doc__ or "", re.MULTILINE | re.DOTALL
    )
    return {"docs/streaming.md": only_block("docs/streaming.md", "python"), "tailrun/__init__.py": docstring}


@pytest.mark.parametrize("place", list(client_examples()))
def test_the_client_of_the_docs_prints_the_line(up: Up, place: str) -> None:
    """It prints what the program printed, and nothing else."""
    source = client_examples()[place].replace("http://127.0.0.1:8080", f"http://127.0.0.1:{up.port}")
    done = subprocess.run(
        [sys.executable, "-c", f"token = {up.token!r}\n{source}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_the_check_of_a_signature_takes_the_right_one_alone() -> None:
    """docs/webhooks.md: a message that was changed, or is old, is refused."""
    names: dict[str, object] = {}
    exec(only_block("docs/webhooks.md", "python"), names)
    verify = names["verify"]
    assert callable(verify)
    key, body, sent = b"k" * 24, b'{"type":"run.succeeded"}', int(time.time())
    message_id = f"msg_{uuid.uuid4()}"
    mac = hmac.digest(key, b"%s.%d.%s" % (message_id.encode(), sent, body), hashlib.sha256)
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(sent),
        "webhook-signature": "v1," + base64.b64encode(mac).decode(),
    }
    secret = "whsec_" + base64.b64encode(key).decode()
    verify(secret, headers, body)
    with pytest.raises(ValueError, match="not signed"):
        verify(secret, headers, body + b" ")
    with pytest.raises(ValueError, match="too old"):
        verify(secret, headers | {"webhook-timestamp": str(sent - 1000)}, body)


def test_a_tailed_run_outlives_its_worker_as_the_readme_shows(up: Up) -> None:
    """Its console comes out, in this order, when the worker is killed after the third line."""
    killed, _prompt = (block.text for block in blocks("console") if block.document == "README.md")
    shown = killed.splitlines()
    assert len(shown) <= 12
    assert shown[0] == "$ tailrun run -- python train.py &"
    (up.folder / "train.py").write_text(
        "import time\nfor step in range(1, 7):\n    print('step', step, flush=True)\n    time.sleep(0.5)\n"
    )
    tailed = up.folder / "tailed"
    with tailed.open("wb") as out:
        tail = subprocess.Popen(
            [sys.executable, "-m", "app", "run", "--", "python", "train.py"],
            cwd=up.folder,
            env=up.env | {"PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=out,
        )
    until(lambda: "step 3" in tailed.read_text())
    up.children()["worker"].kill()
    assert tail.wait(120) == 0
    came = iter(tailed.read_text().splitlines())
    assert [line for line in shown if not line.startswith(("$", "…")) and line not in came] == []
