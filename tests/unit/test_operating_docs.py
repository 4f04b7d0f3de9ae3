"""Commands in the operating documents work: deploy.sh's run against recording programs, others exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.recording_programs import Recorder
from test_deploy_script import MANIFESTS, SECRETS
from typer.main import get_command

from app.cli import command_line

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("deployment", "operations", "troubleshooting", "security", "scaling")
TOOLS = {"tailrun"}


def lines() -> Iterator[tuple[str, str]]:
    """Yield every command line of the fenced blocks, without its comment, with its page."""
    for page in PAGES:
        text = (ROOT / f"docs/{page}.md").read_text()
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                command = re.sub(r"\s+#.*$", "", line).strip()
                if command and not command.startswith("#"):
                    yield page, command


def inline() -> Iterator[tuple[str, str]]:
    """Yield commands that stand in running text."""
    for page in PAGES:
        text = (ROOT / f"docs/{page}.md").read_text()
        for command in re.findall(r"`((?:tailrun|kubectl|\./deploy\.sh|\./verify\.sh) [^`]+)`", text):
            yield page, command


ALL = [*lines(), *inline()]
DEPLOYS = [command for _, command in ALL if "./deploy.sh" in command]


def test_there_are_commands_to_check() -> None:
    assert len(ALL) > 40
    assert len(DEPLOYS) > 10
    assert {page for page, _ in ALL} == set(PAGES)


@pytest.mark.parametrize("command", sorted(set(DEPLOYS)))
def test_a_line_with_deploy_works(command: str, tmp_path: Path) -> None:
    """Each is carried out as it stands, on a cluster that says yes to everything."""
    names = ("kubectl", "helm", "docker", "buildah", "kind", "ctr")
    fakes = Recorder(tmp_path / "fakes", *names, manifests=MANIFESTS)
    for file in ("secrets.env", "mine.yaml"):
        (tmp_path / file).write_text("" if file != "secrets.env" else "S3_ACCESS_KEY=x\n")
    words = [word for word in shlex.split(command) if "=…" not in word]
    words = [str(ROOT / "deploy.sh") if word == "./deploy.sh" else word for word in words]
    words = ["agents" if word == "$NS" else word for word in words]
    words = [str(tmp_path / word) if word in {"secrets.env", "mine.yaml"} else word for word in words]
    for replicas in ("{.spec.replicas}", "tailrun/replicas}"):
        fakes.answer(replicas, 0, "1")
    fakes.answer("go-template", 0, " ".join(SECRETS))  # the Secret is there from the first time
    done = fakes.run(*words, **SECRETS)
    assert done.returncode == 0, done.stderr


def flags(script: str) -> set[str]:
    return set(re.findall(r"--[a-z-]+", (ROOT / script).read_text().partition("\nTEXT")[0]))


def test_flags_of_verify_exist() -> None:
    used = {
        flag for _, command in ALL if "./verify.sh" in command for flag in re.findall(r" (--\S+)", command)
    }
    assert used
    assert used <= flags("verify.sh")


def test_commands_of_tailrun_exist() -> None:
    """Also those that are run inside of a pod."""
    root, seen = get_command(command_line()), set[str]()
    for page, command in ALL:
        for words in re.findall(r"(?:^| )tailrun ([a-z]+(?: [a-z]+)?)", command):
            name, _, sub = words.partition(" ")
            seen.add(name)
            group = root.commands.get(name)  # pyright: ignore[reportAttributeAccessIssue]
            assert group is not None or "/tailrun" in command or "pg_" in command, (page, command)
            if sub and group is not None and hasattr(group, "commands"):
                assert sub in group.commands, (page, command)
    assert len(seen) > 3, "what is looked for is written otherwise by now"


def test_objects_of_kubectl_exist() -> None:
    """Deployments, pods and namespaces that a command names are in the manifests."""
    made = [path.read_text() for path in (ROOT / "k8s").rglob("*.yaml")]
    names = {
        document["metadata"]["name"]
        for text in made
        for document in yaml.safe_load_all(text)
        if isinstance(document, dict) and "metadata" in document
    }
    seen = 0
    for page, command in ALL:
        for name in re.findall(r"\b(?:deployment|service)[/ ]([a-z-]+)", command):
            assert name in names, (page, command)
            seen += 1
        for name in re.findall(r"(?:-n|--namespace) ([a-z-]+)", command):
            assert name in {"agents", "agents-tools"}, (page, command)
    assert seen > 3


def test_settings_and_values_exist() -> None:
    """A setting or a chart value that a page names is one."""
    settings = (ROOT / "docs/configuration.md").read_text()
    values = yaml.safe_load((ROOT / "helm/tailrun/values.yaml").read_text())
    seen = [0, 0]
    for page in PAGES:
        text = (ROOT / f"docs/{page}.md").read_text()
        for name in re.findall(
            r"`((?:TOOL|LOG|JOB|STREAM|WORKER|S3|REDIS|PROJECTS|MIN_FREE)_[A-Z_]+)`", text
        ):
            assert f"`{name}`" in settings, (page, name)
            seen[0] += 1
        for path in re.findall(
            r"`((?:networkPolicy|tools|worker|api|monitoring|image)(?:\.[A-Za-z0-9]+)+)", text
        ):
            at = values
            for part in path.split("."):
                assert part in at, (page, path)
                at = at[part]
            seen[1] += 1
    assert min(seen) > 3
