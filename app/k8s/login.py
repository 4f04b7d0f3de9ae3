"""Where the cluster is and how we prove who we are: from the pod we run in, or from a kubeconfig.

The `kubernetes` library reads both, merges the files of KUBECONFIG, runs credential plugins and asks OpenID
providers. This module caches an answer until it expires, and turns failures into `NoCluster`.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from pathlib import Path
from typing import Any, Literal, Protocol

import aiohttp
import orjson
import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException
from kubernetes.aio.config import incluster_config as pod
from kubernetes.aio.config.dateutil import parse_rfc3339
from kubernetes.aio.config.exec_provider import ExecProvider
from kubernetes.aio.config.kube_config import FileOrData, KubeConfigLoader, KubeConfigMerger
from kubernetes.aio.config.openid import OpenIDRequestor

from app.core.clock import now_us

_FRESH_S = 60.0
"""A token in a file is replaced long before it ends; a minute is what kubectl waits too."""
_EARLY_S = 30.0
_PLUGIN_S = 60.0
_FOREVER_S = float("inf")
_BROKEN = (
    *(ConfigException, OSError, ValueError, KeyError, TypeError, AttributeError),
    *(yaml.YAMLError, aiohttp.ClientError),
)


class NoCluster(Exception):
    """No cluster is configured, or its configuration can't be read; the message names the place."""


class Login(Protocol):
    """One cluster's address and our credentials there."""

    namespace: str

    async def load(self, configuration: Configuration) -> float:
        """Put address and credentials in; return the seconds that they are good for. Raises `NoCluster`."""
        ...

    def refused(self) -> None:
        """Take note of a 401: what the last `load` brought is good no longer."""
        ...


def find(kubeconfig: str | None, environ_host: str | None, environ_port: str | None) -> Login:
    """Return the login that a kubeconfig describes, else that of the pod we run in. Blocking.

    Raises:
        NoCluster: neither is there, or it can't be read.
    """
    if kubeconfig:
        return FromKubeconfig(kubeconfig)
    if not environ_host:
        raise NoCluster(
            "TOOL_EXECUTOR=kubernetes needs a cluster: run the worker in a pod with a service account, "
            "or set KUBECONFIG."
        )
    return InPod(environ_host, environ_port or "443")


class InPod:
    """The service account of the pod that we run in. Its token is replaced in its file all the time."""

    def __init__(self, host: str, port: str) -> None:
        environ = {pod.SERVICE_HOST_ENV_NAME: host, pod.SERVICE_PORT_ENV_NAME: port}
        token = pod.SERVICE_TOKEN_FILENAME
        self._loader = pod.InClusterConfigLoader(
            token, pod.SERVICE_CERT_FILENAME, try_refresh_token=False, environ=environ
        )
        self._load(Configuration())
        try:
            self.namespace = Path(token).with_name("namespace").read_text().strip()
        except OSError as error:
            raise NoCluster(f"This pod has no service account token: {error}") from error

    async def load(self, configuration: Configuration) -> float:
        """Read the token's file."""
        self._load(configuration)
        return _FRESH_S

    def refused(self) -> None:
        """Nothing to forget: the file is read again."""

    def _load(self, configuration: Configuration) -> None:
        try:
            self._loader.load_and_set(configuration)
        except (ConfigException, OSError) as error:
            raise NoCluster(f"This pod has no service account token: {error}") from error
        _finish(configuration)


class FromKubeconfig:
    """The current context of one or more kubeconfig files, merged as kubectl merges them."""

    def __init__(self, paths: str) -> None:
        self._paths = paths
        try:
            merger = KubeConfigMerger(paths)
            names = (config.get("current-context") for config in merger.config_files.values())
            name = next(filter(None, names), None)  # the first, as for kubectl; the library takes the last
            if name is None:
                raise ConfigException("no file, or none that names a current-context")
            merged: Any = merger.config
            each_its_own: Any = None
            self._loader = _Loader(merged, active_context=name, config_base_path=each_its_own)
            context = merged["contexts"].get_with_name(name)["context"]
            user = merged["users"].get_with_name(context["user"])["user"].value
        except _BROKEN as error:
            raise self._unusable(error) from error
        self.namespace: str = context.safe_get("namespace") or "default"
        self._may_change = "tokenFile" in user or "auth-provider" in user

    async def load(self, configuration: Configuration) -> float:
        """Take what the user's entry holds; run its plugin or ask its provider where that is due."""
        try:
            await self._loader.load_and_set(configuration)
        except _BROKEN as error:
            raise self._unusable(error) from error
        _finish(configuration)
        return _FRESH_S if self._may_change else self._loader.good_for_s()

    def refused(self) -> None:
        """Have the plugin or the provider asked by the next `load`."""
        self._loader.refused = True

    def _unusable(self, error: Exception) -> NoCluster:
        return NoCluster(f"KUBECONFIG {self._paths} can't be used: {type(error).__name__} {error}")


class _Loader(KubeConfigLoader):
    """Keeps the answer of a credential plugin or an OpenID provider until it expires, or is refused.

    The library's own runs a plugin each time and hides what goes wrong, and it does not verify a provider.
    """

    refused = False
    _renew_at: float | None = None

    def good_for_s(self) -> float:
        return _FOREVER_S if self._renew_at is None else self._renew_at - _now_s()

    async def load_from_exec_plugin(self) -> Literal[True]:
        if self.refused or self._renew_at is None or self.good_for_s() <= 0:
            await self._ask()
            self.refused = False
        return True

    async def _load_oid_token(self) -> str:
        user: Any = self._user
        given: dict[str, Any] = user["auth-provider"]["config"].value
        end = _end_of(given["id-token"]) if given.get("id-token") else 0.0
        if self.refused or end - _now_s() < _EARLY_S:
            authority = FileOrData(given, "idp-certificate-authority").as_file()
            secret = given.get("client-secret") or ""
            issuer = _Issuer(given["client-id"], secret, given["idp-issuer-url"], authority)
            found: dict[str, Any] = await issuer.refresh_token(given["refresh-token"])
            given["id-token"] = found["id_token"]
            given["refresh-token"] = found.get("refresh_token") or given["refresh-token"]
        self.refused = False
        self.token = f"Bearer {given['id-token']}"
        return self.token

    async def _ask(self) -> None:
        user: Any = self._user
        command = user["exec"]["command"]
        try:
            async with asyncio.timeout(_PLUGIN_S):
                answer: dict[str, Any] = await ExecProvider(user["exec"]).run()
            token, certificate = answer.get("token"), answer.get("clientCertificateData")
            if not token and not (certificate and answer.get("clientKeyData")):
                raise ConfigException("its answer has neither a token nor a certificate with its key")
        except (*_BROKEN, TimeoutError) as error:
            raise ConfigException(
                f"the credential program {command!r}: {error or type(error).__name__}"
            ) from error
        if token:
            self.token = f"Bearer {token}"
        if certificate:
            self.cert_file, self.key_file = (
                FileOrData(answer, "", data_key_name=name, base64_file_content=False).as_file()
                for name in ("clientCertificateData", "clientKeyData")
            )
        self._renew_at = _renewal(answer.get("expirationTimestamp"))


class _Issuer(OpenIDRequestor):
    """Verifies the provider's certificate, always: the library does so only for an authority of its own."""

    def _client_session(self) -> aiohttp.ClientSession:
        context = ssl.create_default_context(cafile=self._ssl_ca_cert)
        authorization = aiohttp.encode_basic_auth(self._client_id, self._client_secret)
        return aiohttp.ClientSession(
            headers={**self._default_headers, "Authorization": authorization},
            connector=aiohttp.TCPConnector(ssl=context),
            timeout=aiohttp.ClientTimeout(_PLUGIN_S),
            raise_for_status=True,
        )


def _end_of(token: str) -> float:
    """Return when a JSON Web Token expires; the library decodes it as base64, not as base64url."""
    claims = token.split(".")[1]
    return float(
        orjson.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))).get("exp", _FOREVER_S)
    )


def _renewal(expires: str | None) -> float:
    """Return the time to ask again: half a minute early, but not before half of its time is over."""
    if not expires:
        return _FOREVER_S
    now, end = _now_s(), parse_rfc3339(expires).timestamp()
    return end - min(_EARLY_S, max(0.0, end - now) / 2)


def _finish(configuration: Configuration) -> None:
    """Do what the library leaves out: trust authorities as kubectl does, and cut line ends off a token.

    From Python 3.13 on the default asks for more of certificates than kubectl: authorities without the
    key usage extension, which clusters made by older tools have, would be refused.
    """
    configuration.disable_strict_ssl_verification = True
    if token := configuration.api_key.get("BearerToken"):
        configuration.api_key["BearerToken"] = token.strip()


def _now_s() -> float:
    return now_us() / 1_000_000
