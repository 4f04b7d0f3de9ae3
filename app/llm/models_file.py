"""Which models there are: one from the settings `LLM_…`, more from the file that LLM_MODELS_FILE names.

Users choose a model by its name only, never by an address: whoever could name the address would be
sent the key. An entry of the file takes limits that it does not give from the settings, but never
address, key, proxy or CA, which belong to one server.

    models:
      quick:
        url: https://models.example/v1
        key_file: /run/secrets/quick
        model: some-model-small
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast
from urllib.parse import urlsplit

import orjson
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from app.config import LlmSettings

_MAKERS = {"chat": "https://api.openai.com/v1", "messages": "https://api.anthropic.com"}
_ENDS = {"chat": ("/chat/completions",), "messages": ("/v1/messages", "/v1")}
_OURS = ("messages", "stream", "system", "tools")
_MOST_BYTES = 1_000_000
_INHERITED = (
    *("context_tokens", "max_output_tokens", "connect_s", "first_token_s", "idle_s", "timeout_s"),
    *("retries", "concurrency"),
)
_OWN = ("url", "key", "model", "dialect", "max_tokens_field", "extra_body", "ca_file", "proxy")


class BadModels(Exception):
    """What is wrong with the models of this deployment, for whoever operates it."""


class ModelConfig(BaseModel):
    """One model: where it is, and what it may take. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    url: str = ""
    key: SecretStr | None = None
    key_file: Path | None = None
    model: str = Field(min_length=1, max_length=200)
    dialect: Literal["chat", "messages"] = "chat"
    context_tokens: int = Field(128_000, ge=1_000)
    max_output_tokens: int = Field(8_192, ge=1)
    max_tokens_field: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    extra_body: dict[str, Any] = Field(default_factory=dict[str, Any])
    connect_s: float = Field(10, gt=0)
    first_token_s: float = Field(180, gt=0)
    idle_s: float = Field(60, gt=0)
    timeout_s: float = Field(900, gt=0)
    retries: int = Field(5, ge=0, le=20)
    concurrency: int = Field(64, ge=1, le=10_000)
    ca_file: Path | None = None
    proxy: SecretStr | None = None

    @field_validator("extra_body", mode="before")
    @classmethod
    def _body(cls, value: Any) -> Any:
        found = orjson.loads(value) if isinstance(value, str) and value.strip() else value or {}
        ours = [name for name in _OURS if name in found] if isinstance(found, dict) else []
        if ours:
            raise ValueError(f"may not hold {', '.join(ours)}: Tailrun writes that itself")
        return found

    @model_validator(mode="after")
    def _address(self) -> Self:
        url = (self.url or _MAKERS[self.dialect]).rstrip("/")
        for end in _ENDS[self.dialect]:
            url = url.removesuffix(end).rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url is no http:// or https:// address")
        if parts.username is not None or parts.query:
            raise ValueError("url may have no login and no query: the key is a setting of its own")
        object.__setattr__(self, "url", url)
        if self.key is not None and self.key_file is not None:
            raise ValueError("give key or key_file, not both")
        if self.key_file is not None:
            object.__setattr__(self, "key", SecretStr(_key(self.key_file)))
        if not (self.secret.isascii() and self.secret.isprintable()):
            raise ValueError("the key holds a character that can't be sent in a header")
        if self.proxy and urlsplit(self.proxy.get_secret_value()).scheme not in ("http", "https"):
            raise ValueError("the proxy is no http:// or https:// address")
        return self

    @property
    def secret(self) -> str:
        """The key; empty where the server wants none."""
        return self.key.get_secret_value().strip() if self.key else ""


@dataclass(frozen=True, slots=True)
class ModelTable:
    """Every model by name; the first is the one that a run gets which names none."""

    models: Mapping[str, ModelConfig]

    @property
    def default(self) -> ModelConfig | None:
        """The model of a run that names none; None: this deployment has no model."""
        return next(iter(self.models.values()), None)

    def secrets(self) -> list[str]:
        """Return every key, and logins of proxies, for masking."""
        found = [config.secret for config in self.models.values()]
        proxies = [urlsplit(c.proxy.get_secret_value()) for c in self.models.values() if c.proxy]
        return [each for each in (*found, *(proxy.password or "" for proxy in proxies)) if each]


def load(settings: LlmSettings) -> ModelTable:
    """Return the models of this deployment. Blocking.

    Raises:
        BadModels: a setting or the file is wrong; the message names the place.
    """
    given = {name: getattr(settings, name) for name in (*_INHERITED, *_OWN)}
    limits = {name: given[name] for name in _INHERITED}
    entries = {} if settings.models_file is None else _entries(settings.models_file)
    found = {
        name: _config(f"{settings.models_file}: models.{name}", {**limits, **entry, "name": name})
        for name, entry in entries.items()
    }
    chosen = settings.model
    if chosen and chosen in found:
        return ModelTable({chosen: found.pop(chosen), **found})
    if chosen:
        return ModelTable({chosen: _config("LLM_…", {**given, "name": chosen}), **found})
    if settings.url or settings.key:
        raise BadModels("LLM_MODEL is not set: it says which model of that server to use")
    return ModelTable(found)


def _config(where: str, values: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc']))}{': ' if each['loc'] else ''}{each['msg']}"
            for each in error.errors(include_input=False, include_url=False)
        )
        raise BadModels(f"{where}: {wrong} (see docs/agent.md)") from None


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    found = read_yaml(path)
    models = found.get("models") if isinstance(found, dict) else None
    if not isinstance(models, dict) or not models or found.keys() != {"models"}:
        raise BadModels(f"{path}: has one key, models, which holds the models by name (see docs/agent.md)")
    for name, entry in cast("dict[Any, Any]", models).items():
        if not isinstance(name, str) or not isinstance(entry, dict):
            raise BadModels(f"{path}: models.{name} is a name with settings below it (see docs/agent.md)")
    return cast("dict[str, dict[str, Any]]", models)


def read_yaml(path: Path) -> Any:
    """Read a small YAML file of the operator's.

    Raises:
        BadModels: it can't be read.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BadModels(f"{path}: has more than {_MOST_BYTES} bytes")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadModels(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        # the parser quotes the line, which may hold a key
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise BadModels(f"{path}{place}: is no YAML") from None


def _key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"key_file {path} can't be read: {type(error).__name__}") from None
