"""Moves the bytes of one model: the maker's library posts, the answer is read below its models.

The libraries bring addresses, authentication, headers and the shape of errors. Their retries are
off (each could be paid for twice, unseen), and of an answer the raw bytes are read: their models
cost many times as much a chunk (docs/decisions/0034-models.md), hide the comments that keep a
connection alive, and end on what only some servers send. An answer is closed on every way out:
that ends the generation, and the bill.

Libraries are imported at the first call, in a thread: they take a second.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from app.llm.failures import ModelFailure, ModelRejected, ModelUnavailable, of_status

if TYPE_CHECKING:
    import httpx2

    from app.llm.models_file import ModelConfig

_LIBRARY = {"chat": ("openai", "AsyncOpenAI"), "messages": ("anthropic", "AsyncAnthropic")}
_WRITE_S = 60.0
_KEEPALIVE_S = 30.0
_MOST_IDLE_CONNECTIONS = 20
_PAGES = ("text/html", "application/xhtml+xml")


class Wire:
    """One model's connections; belongs to one event loop."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._library: Any = None
        self._client: Any = None
        self._making = asyncio.Lock()

    async def prepare(self) -> None:
        """Import the library and make the client, once.

        Raises:
            ModelRejected: its settings are wrong.
        """
        async with self._making:
            if self._client is None:
                self._library, self._client = await asyncio.to_thread(_make, self._config)

    @asynccontextmanager
    async def post(self, path: str, body: dict[str, Any], deadline: float) -> AsyncGenerator[httpx2.Response]:
        """Post a request; give out the answer, which is closed at the end however that comes.

        `deadline` is a time of the event loop, until which the head of the answer has to be there.

        Raises:
            ModelFailure: there is no answer, or it is an error.
        """
        await self.prepare()
        try:
            async with asyncio.timeout_at(deadline):
                stream = await self._client.post(
                    path,
                    cast_to=object,
                    body=body,
                    options=self._options(),
                    stream=True,
                    stream_cls=self._library.AsyncStream[object],
                )
        except TimeoutError as error:
            raise ModelUnavailable(
                f"The model's server did not answer within {self._config.first_token_s:g} s"
                " (LLM_FIRST_TOKEN_S)."
            ) from error
        except self._library.APIStatusError as error:
            answer: httpx2.Response = error.response
            raise of_status(answer.status_code, answer.headers, self.hidden(answer.text)).failure() from None
        except self._library.APIConnectionError as error:
            raise self._unreached(error) from error
        response: httpx2.Response = stream.response
        try:
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind in _PAGES:
                raise ModelRejected(
                    f"{self._config.url} answers a web page, no model: "
                    "is LLM_URL right (usually it ends in /v1)?"
                )
            yield response
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _options(self) -> dict[str, Any]:
        """Have no key sent where there is none: the libraries insist on one, or on its omission by name."""
        if self._config.secret:
            return {}
        return {"headers": {"Authorization": self._library.Omit(), "X-Api-Key": self._library.Omit()}}

    def hidden(self, text: str) -> str:
        """Take the key out of what a server says: some quote it."""
        secret = self._config.secret
        return text.replace(secret, "***") if secret else text

    def _unreached(self, error: Exception) -> ModelFailure:
        """Say why there was no answer: the cause that lies deepest knows it best."""
        cause: BaseException = error
        while (deeper := cause.__cause__ or cause.__context__) is not None:
            cause = deeper
            if isinstance(cause, ssl.SSLCertVerificationError):
                return ModelRejected(
                    f"The certificate of {self._config.url} is not trusted ({cause.verify_message}): "
                    "LLM_CA_FILE names the authority that signed it."
                )
        said = self.hidden(str(cause) or type(cause).__name__)
        return ModelUnavailable(f"{self._config.url} could not be reached: {said}.")


def _make(config: ModelConfig) -> tuple[Any, Any]:
    """Return the library and its client. Blocking."""
    name, kind = _LIBRARY[config.dialect]
    library = import_module(name)
    http = _http_client(config)
    given: dict[str, Any] = {
        "base_url": config.url,
        "max_retries": 0,
        "http_client": http,
        "timeout": http.timeout,
    }
    client = getattr(library, kind)(api_key=config.secret or "none", **given)
    if config.dialect == "chat":
        client.organization = client.project = None  # the library reads them from the environment
    return library, client


def _http_client(config: ModelConfig) -> Any:
    import httpx2  # noqa: PLC0415 - takes a while, as the libraries do

    try:
        verify = True if config.ca_file is None else ssl.create_default_context(cafile=str(config.ca_file))
    except OSError as error:
        raise ModelRejected(f"LLM_CA_FILE {config.ca_file} can't be used: {error}.") from error
    proxy = config.proxy.get_secret_value() if config.proxy else None
    return httpx2.AsyncClient(
        base_url=config.url,
        verify=verify,
        proxy=proxy,
        timeout=httpx2.Timeout(None, connect=config.connect_s, write=_WRITE_S),
        limits=httpx2.Limits(
            max_connections=None,
            max_keepalive_connections=_MOST_IDLE_CONNECTIONS,
            keepalive_expiry=_KEEPALIVE_S,
        ),
        follow_redirects=False,
    )
