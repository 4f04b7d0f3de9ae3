"""How a worker finds its cluster and proves who it is: real files, real programs, real TLS."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trustme
import yaml
from fake_cluster.http import Answer, Request, found, refusal, serve
from kubernetes.aio.config import incluster_config

from app.k8s import login as login_module
from app.k8s.client import Cluster, ClusterAway, RequestRefused
from app.k8s.login import NoCluster, find


class Server:
    """An API server that takes the tokens in `good`, or whoever shows a certificate if that is None."""

    def __init__(self, authority: trustme.CA) -> None:
        self.authority = authority
        self.good: set[str] | None = None
        self.seen: list[str] = []
        self.answers: dict[str, Callable[[Request], Answer]] = {}

    async def start(self, *, client_certificate: bool = False) -> Server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        if client_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            self.authority.configure_trust(context)
        self.server = await serve(self._answer, ssl=context)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        return self

    async def _answer(self, request: Request) -> Answer:
        if request.path in self.answers:
            return self.answers[request.path](request)
        self.seen.append(request.headers.get("authorization", ""))
        if self.good is not None and self.seen[-1].partition(" ")[2] not in self.good:
            return refusal(401, "Unauthorized")
        return found({"ok": True})


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def server(authority: trustme.CA) -> AsyncIterator[Server]:
    server = await Server(authority).start()
    yield server
    server.server.close()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def kubeconfig(folder: Path, server: Server, user: dict[str, Any], name: str = "kubeconfig") -> str:
    cluster = {
        "server": server.url,
        "certificate-authority-data": encoded(server.authority.cert_pem.bytes()),
    }
    config = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x", "namespace": "tools"}}],
        "clusters": [{"name": "x", "cluster": cluster}],
        "users": [{"name": "x", "user": user}],
    }
    path = folder / name
    path.write_text(yaml.safe_dump(config))
    return str(path)


def plugin(folder: Path, **status: Any) -> dict[str, Any]:
    """A credential program that notes each run, and says what stands in `status.json`."""
    program, runs = folder / "plugin.py", folder / "runs"
    (folder / "status.json").write_text(json.dumps(status))
    program.write_text(f"""
import json, os, sys, time
open({str(runs)!r}, "a").write("run\\n")
assert json.loads(os.environ["KUBERNETES_EXEC_INFO"])["kind"] == "ExecCredential"
time.sleep(0.1)
status = json.load(open({str(folder / "status.json")!r}))
if status.pop("broken", False):
    sys.exit("no luck today")
about = {{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}}
print(json.dumps({{**about, "status": status}}))
""")
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": [str(program)],
            "env": [{"name": "X", "value": "y"}],
        }
    }


def runs_of(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


def in_seconds(seconds: float) -> str:
    return datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def ask(cluster: Cluster, times: int = 1) -> None:
    answers = await asyncio.gather(*(cluster.get("/version") for _ in range(times)))
    assert answers == [{"ok": True}] * times


@pytest.fixture
async def cluster_of() -> AsyncIterator[Callable[..., Cluster]]:
    opened: list[Cluster] = []

    def open_cluster(*where: str | None) -> Cluster:
        opened.append(Cluster(find(*(*where, None, None)[:3]), jitter=Random(1)))
        return opened[-1]

    yield open_cluster
    for cluster in opened:
        await cluster.close()


async def test_a_plugin_runs_once_for_all_requests_until_its_token_expires(
    server: Server, tmp_path: Path, cluster_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.good = {"one"}
    user = plugin(tmp_path, token="one", expirationTimestamp=in_seconds(600))
    cluster = cluster_of(kubeconfig(tmp_path, server, user))
    await ask(cluster, 20)
    await ask(cluster)
    assert runs_of(tmp_path) == 1
    now = time.time()
    monkeypatch.setattr(login_module, "_now_s", lambda: now + 580)
    cluster._good_until = asyncio.get_running_loop().time()  # as if the time were over
    await ask(cluster, 20)
    assert runs_of(tmp_path) == 2
    assert set(server.seen) == {"Bearer one"}


async def test_a_plugin_that_names_no_end_runs_again_when_its_token_is_refused(
    server: Server, tmp_path: Path, cluster_of: Any
) -> None:
    """Once for all requests that were refused."""
    server.good = {"old"}
    cluster = cluster_of(kubeconfig(tmp_path, server, plugin(tmp_path, token="old")))
    await ask(cluster, 5)
    (tmp_path / "status.json").write_text(json.dumps({"token": "new"}))
    server.good = {"new"}
    await ask(cluster, 10)
    assert runs_of(tmp_path) == 2
    server.good = set()
    with pytest.raises(RequestRefused):
        await cluster.get("/version")
    assert runs_of(tmp_path) == 3, "once, then it is told"


async def test_what_a_plugin_says_when_it_fails_is_told(
    server: Server, tmp_path: Path, cluster_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.k8s.client.PATIENCE_S", 0.0)
    cluster = cluster_of(kubeconfig(tmp_path, server, plugin(tmp_path, broken=True)))
    with pytest.raises(ClusterAway, match="no luck today"):
        await cluster.create("/version", {}, patience_s=0)
    (tmp_path / "status.json").write_text(json.dumps({"clientCertificateData": "half"}))
    with pytest.raises(ClusterAway, match="neither a token nor a certificate"):
        await cluster.create("/version", {}, patience_s=0)


async def test_a_plugin_may_bring_a_client_certificate_and_replace_it(
    authority: trustme.CA, tmp_path: Path, cluster_of: Any
) -> None:
    """What is under way on the old one goes on to its end."""
    server = await Server(authority).start(client_certificate=True)

    def certificate() -> dict[str, str]:
        made = authority.issue_cert("someone@example.org")
        chain = b"".join(part.bytes() for part in made.cert_chain_pems)
        return {
            "clientCertificateData": chain.decode(),
            "clientKeyData": made.private_key_pem.bytes().decode(),
        }

    more = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"one"
        await more.wait()
        yield b"two"

    server.answers["/slow"] = lambda _: Answer(200, slow())
    user = plugin(tmp_path, **certificate(), expirationTimestamp=in_seconds(600))
    cluster = cluster_of(kubeconfig(tmp_path, server, user))
    await ask(cluster, 5)
    first = cluster._connections
    async with cluster.stream("/slow", idle_s=60) as pieces:
        assert await anext(pieces) == b"one"
        (tmp_path / "status.json").write_text(json.dumps(certificate()))
        cluster._login.refused()
        cluster._good_until = float("-inf")
        await ask(cluster, 5)
        assert cluster._connections is not first
        assert first is not None
        assert not first.api.rest_client.pool_manager.closed
        more.set()
        assert await anext(pieces) == b"two"
    assert first.api.rest_client.pool_manager.closed
    assert runs_of(tmp_path) == 2
    server.server.close()


async def test_files_of_kubeconfig_are_merged_as_kubectl_does(
    server: Server, tmp_path: Path, cluster_of: Any
) -> None:
    """The first that says something wins; names in a file are relative to its folder."""
    server.good = {"right"}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    context = {"name": "mine", "context": {"cluster": "c", "user": "u", "namespace": "tools"}}
    first = {
        "current-context": "mine",
        "contexts": [context],
        "users": [{"name": "x", "user": {"token": "z"}}],
    }
    second = {
        "current-context": "other",
        "contexts": [{"name": "other", "context": {"cluster": "c", "user": "x"}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url, "certificate-authority": "ca.crt"}}],
        "users": [{"name": "u", "user": {"tokenFile": "token"}}, {"name": "x", "user": {"token": "wrong"}}],
    }
    (tmp_path / "a/config").write_text(yaml.safe_dump(first))
    (tmp_path / "b/config").write_text(yaml.safe_dump(second))
    (tmp_path / "b/token").write_text("right\n")
    server.authority.cert_pem.write_to_path(tmp_path / "b/ca.crt")
    paths = f"{tmp_path}/a/config:{tmp_path}/missing:{tmp_path}/b/config"
    cluster = cluster_of(paths)
    assert cluster.namespace == "tools"
    await ask(cluster)


@pytest.mark.parametrize(
    ("user", "authorization"),
    [
        ({"token": "t"}, "Bearer t"),
        ({"username": "u", "password": "p"}, f"Basic {encoded(b'u:p')}"),
    ],
    ids=["token", "password"],
)
async def test_what_stands_in_the_file_is_sent(
    server: Server, tmp_path: Path, cluster_of: Any, user: dict[str, Any], authorization: str
) -> None:
    await ask(cluster_of(kubeconfig(tmp_path, server, user)))
    assert server.seen == [authorization]


async def test_a_certificate_of_the_file_speaks_for_us(
    authority: trustme.CA, tmp_path: Path, cluster_of: Any
) -> None:
    server = await Server(authority).start(client_certificate=True)
    made = authority.issue_cert("someone@example.org")
    user = {
        "client-certificate-data": encoded(made.cert_chain_pems[0].bytes()),
        "client-key-data": encoded(made.private_key_pem.bytes()),
    }
    await ask(cluster_of(kubeconfig(tmp_path, server, user)))
    assert server.seen == [""]
    server.server.close()


async def test_a_server_of_another_authority_is_not_trusted(
    server: Server, tmp_path: Path, cluster_of: Any
) -> None:
    server.authority = trustme.CA()
    cluster = cluster_of(kubeconfig(tmp_path, server, {"token": "t"}))
    with pytest.raises(ClusterAway, match="certificate verify failed"):
        await cluster.create("/version", {}, patience_s=0)
    assert server.seen == []


async def test_authorities_are_trusted_as_kubectl_trusts_them(
    server: Server, tmp_path: Path, cluster_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.13 refuses authorities without key usage, which many clusters have, if it is let."""
    made: list[ssl.SSLContext] = []
    default = ssl.create_default_context

    def as_in_3_13(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        made.append(default(*args, **kwargs))
        made[-1].verify_flags |= ssl.VERIFY_X509_STRICT
        return made[-1]

    monkeypatch.setattr(ssl, "create_default_context", as_in_3_13)
    await ask(cluster_of(kubeconfig(tmp_path, server, {"token": "t"})))
    assert made
    assert not made[-1].verify_flags & ssl.VERIFY_X509_STRICT
    assert made[-1].verify_mode is ssl.CERT_REQUIRED
    assert made[-1].check_hostname


async def test_the_token_of_a_pod_is_read_again_when_it_was_replaced(
    server: Server, tmp_path: Path, cluster_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refusal at once, else within a minute."""
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    with pytest.raises(NoCluster, match="no service account token"):
        find(None, "127.0.0.1", str(server.port))
    server.authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "namespace").write_text("tools\n")
    (tmp_path / "token").write_text("first\n")
    server.good = {"first", "second"}
    cluster = cluster_of(None, "127.0.0.1", str(server.port))
    assert cluster.namespace == "tools"
    await ask(cluster)
    (tmp_path / "token").write_text("second")
    await ask(cluster)
    assert cluster._good_until - asyncio.get_running_loop().time() <= 60
    server.good = {"second"}
    await ask(cluster, 5)
    assert [each.lower() for each in server.seen[:2]] == ["bearer first"] * 2
    assert server.seen[-1].lower() == "bearer second"


def web_token(seconds: float, who: str) -> str:
    claims = json.dumps({"exp": time.time() + seconds, "sub": who}).encode()
    return f"head.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.signature"


@pytest.mark.parametrize("refresh", [True, False], ids=["it gives a new refresh token", "it gives none"])
async def test_an_openid_provider_is_asked_when_the_token_is_over(
    server: Server, tmp_path: Path, cluster_of: Any, *, refresh: bool
) -> None:
    old, new = web_token(-10, "???>>>"), web_token(600, "~~~???")
    asked: list[bytes] = []

    def give(request: Request) -> Answer:
        asked.append(request.body)
        return found({"id_token": new, **({"refresh_token": "r2"} if refresh else {})})

    about = {"token_endpoint": f"{server.url}/token"}
    server.answers = {"/.well-known/openid-configuration": lambda _: found(about), "/token": give}
    server.good = {new}
    config = {
        "client-id": "me",
        "client-secret": "s",
        "idp-issuer-url": server.url,
        "idp-certificate-authority-data": encoded(server.authority.cert_pem.bytes()),
        "id-token": old,
        "refresh-token": "r1",
    }
    user = {"auth-provider": {"name": "oidc", "config": config}}
    cluster = cluster_of(kubeconfig(tmp_path, server, user))
    await ask(cluster, 5)
    assert [b"r1" in body for body in asked] == [True]
    server.good = set()
    with pytest.raises(RequestRefused):
        await cluster.get("/version")
    assert b"r2" in asked[1] if refresh else b"r1" in asked[1]


async def test_an_openid_provider_has_to_prove_who_it_is(
    server: Server, tmp_path: Path, cluster_of: Any
) -> None:
    """Also without an authority of its own: what we send there is a secret."""
    asked: list[str] = []
    server.answers = {
        "/.well-known/openid-configuration": lambda request: asked.append(request.path) or found({})
    }
    config = {"client-id": "me", "idp-issuer-url": server.url, "refresh-token": "r1"}
    user = {"auth-provider": {"name": "oidc", "config": config}}
    with pytest.raises(ClusterAway, match="certificate verify failed"):
        await cluster_of(kubeconfig(tmp_path, server, user)).create("/version", {}, patience_s=0)
    assert asked == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no file"),
        ("{}", "no file, or none that names"),
        ("[", "ParserError"),
        ("current-context: x", "contexts"),
    ],
)
def test_a_kubeconfig_that_can_not_be_used_is_told_with_its_name(
    tmp_path: Path, text: str | None, says: str
) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(NoCluster, match=says) as caught:
        find(str(path), None, None)
    assert str(path) in str(caught.value)


def test_without_a_cluster_it_says_what_to_do() -> None:
    with pytest.raises(NoCluster, match="set KUBECONFIG"):
        find(None, None, None)
