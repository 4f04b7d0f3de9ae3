"""Settings: the only reader of the environment.

Each field is one environment variable, named in it, and has a row in docs/configuration.md (a test holds the
two together). Empty values count as unset. A room of the code takes its group whole. Times are in seconds,
sizes in bytes.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

_KEY_BYTES = 32

RETIRED = (
    *("HTTP_BODY_TIMEOUT_S", "HTTP_HEAD_TIMEOUT_S", "LOG_LINGER_S", "PROJECTS_TIMEOUT_S"),
    *("STREAM_LINGER_S", "STREAM_SEND_TIMEOUT_S", "WEBHOOK_RETRY_BASE_S", "WEBHOOK_RETRY_MAX_S"),
)
"""Settings of earlier versions that are constants now: set, they are named in one warning at the start."""


def _setting(
    variable: str,
    default: object,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
) -> Any:
    """Return the field of one environment variable."""
    return Field(default, validation_alias=variable, ge=ge, gt=gt, le=le)


class _Group(BaseModel):
    """Settings of one room. In code a field goes by its own name too, so that tests can make a group."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_alias=True, validate_by_name=True, validate_default=True
    )


class DataSettings(_Group):
    """Where things are kept."""

    folder: Path = _setting("DATA_DIR", Path(".tailrun"))
    database_url: SecretStr | None = _setting("DATABASE_URL", None)

    @cached_property
    def effective_database_url(self) -> str:
        """The database to use: the one that is set, or SQLite below the data folder."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{quote(os.fsencode(self.folder.resolve() / 'tailrun.db'))}"

    @cached_property
    def tmp_dir(self) -> Path:
        """Where each tool run has its own temporary folder."""
        return self.folder.resolve() / "tmp"


class ApiSettings(_Group):
    """Where the API serves, whom it lets in and how much it takes."""

    host: str = _setting("HOST", "127.0.0.1")
    port: int = _setting("PORT", 8080, ge=0, le=65535)
    staging_port: int | None = _setting("STAGING_PORT", None, ge=1, le=65535)
    auth: Literal["on", "off"] = _setting("AUTH", "on")
    token: SecretStr | None = _setting("API_TOKEN", None)
    cors_origins: str = _setting("CORS_ORIGINS", "")
    body_max_bytes: int = _setting("BODY_MAX_BYTES", 5_000_000, ge=1)


class RedisSettings(_Group):
    """Where Redis is, and what is kept there."""

    url: SecretStr | None = _setting("REDIS_URL", None)
    port: int | None = _setting("REDIS_PORT", None, ge=0, le=65535)
    prefix: str = _setting("REDIS_PREFIX", "")
    ca_file: Path | None = _setting("REDIS_CA_FILE", None)
    cert_file: Path | None = _setting("REDIS_CERT_FILE", None)
    key_file: Path | None = _setting("REDIS_KEY_FILE", None)
    sentinel_username: str | None = _setting("REDIS_SENTINEL_USERNAME", None)
    sentinel_password: SecretStr | None = _setting("REDIS_SENTINEL_PASSWORD", None)
    rest_url: str | None = _setting("UPSTASH_REDIS_REST_URL", None)
    rest_token: SecretStr | None = _setting("UPSTASH_REDIS_REST_TOKEN", None)
    tail_ttl_s: int = _setting("TAIL_TTL_S", 300, ge=1)

    @cached_property
    def effective_url(self) -> str:
        """The Redis to use: the one that is set, or the port of this machine."""
        if self.url is not None:
            return self.url.get_secret_value()
        return f"redis://127.0.0.1:{self.port or 6379}/0"


class StorageSettings(_Group):
    """Users' files."""

    s3_bucket: str | None = _setting("S3_BUCKET", None)
    s3_endpoint: str = _setting("S3_ENDPOINT", "https://sos-ch-gva-2.exo.io")
    s3_region: str = _setting("S3_REGION", "ch-gva-2")
    s3_access_key: str | None = _setting("S3_ACCESS_KEY", None)
    s3_secret_key: SecretStr | None = _setting("S3_SECRET_KEY", None)
    file_max_bytes: int = _setting("FILE_MAX_BYTES", 100_000_000, ge=1)
    workspace_max_bytes: int = _setting("WORKSPACE_MAX_BYTES", 1_000_000_000, ge=1)
    workspace_max_files: int = _setting("WORKSPACE_MAX_FILES", 10_000, ge=1)
    tool_sync_url: str | None = _setting("TOOL_SYNC_URL", None)
    usage_every_s: float = _setting("USAGE_EVERY_S", 3600, ge=0)


class TasksSettings(_Group):
    """The deployment's own tasks."""

    file: Path | None = _setting("TASKS_FILE", None)
    operation_type: str = _setting("OPERATION_TYPE", "")


class ProjectsSettings(_Group):
    """What runs get from their project."""

    key: SecretStr | None = _setting("PROJECTS_KEY", None)
    url: str = _setting("PROJECTS_URL", "")
    token: SecretStr | None = _setting("PROJECTS_TOKEN", None)

    @field_validator("key")
    @classmethod
    def _keys(cls, keys: SecretStr | None) -> SecretStr | None:
        for key in keys.get_secret_value().split(",") if keys else ():
            if not _is_key(key.strip()):
                raise ValueError("holds keys of 32 bytes in URL-safe base64, separated by commas")
        return keys

    @property
    def keys(self) -> str | None:
        """The keys of what projects keep secret, the sealing one first, separated by commas."""
        return self.key.get_secret_value() if self.key else None


class RunsSettings(_Group):
    """What holds for each run."""

    user_backlog_max: int = _setting("USER_BACKLOG_MAX", 10_000, ge=1)
    timeout_s: float = _setting("JOB_TIMEOUT_S", 3600, gt=0)
    max_attempts: int = _setting("JOB_MAX_ATTEMPTS", 3, ge=1)
    max_redeliveries: int = _setting("JOB_MAX_REDELIVERIES", 3, ge=0)
    infrastructure_wait_s: float = _setting("INFRASTRUCTURE_WAIT_S", 600, ge=0)
    retry_base_s: float = _setting("RETRY_BASE_S", 1, ge=0)
    retry_max_s: float = _setting("RETRY_MAX_S", 300, ge=0)


class StreamSettings(_Group):
    """Streams that the API serves."""

    token_ttl_s: int = _setting("STREAM_TOKEN_TTL_S", 300, ge=1)
    ping_s: float = _setting("STREAM_PING_S", 15, gt=0)
    limit: int = _setting("STREAM_LIMIT", 2_000, ge=1)
    user_max: int = _setting("USER_STREAM_MAX", 500, ge=1)


class WorkerSettings(_Group):
    """A worker process, and when it claims."""

    up_workers: int = _setting("UP_WORKERS", 1, ge=0, le=64)
    concurrency: int = _setting("WORKER_CONCURRENCY", 10, ge=1, le=1000)
    agents: int = _setting("WORKER_AGENTS", 100, ge=1, le=10_000)
    host: str = _setting("WORKER_HOST", "127.0.0.1")
    port: int = _setting("WORKER_PORT", 9090, ge=0, le=65535)
    lease_s: float = _setting("LEASE_S", 5, ge=4)
    drain_s: float = _setting("DRAIN_S", 30, ge=0)
    fallback_s: float = _setting("WORKER_FALLBACK_S", 0, ge=0)
    min_free_memory_bytes: int = _setting("MIN_FREE_MEMORY_BYTES", 64_000_000, ge=0)
    min_free_disk_bytes: int = _setting("MIN_FREE_DISK_BYTES", 100_000_000, ge=0)
    min_free_fds: int = _setting("MIN_FREE_FDS", 64, ge=0)


class ToolsSettings(_Group):
    """How tools are run, and the limits of local programs."""

    executor: Literal["local", "kubernetes"] = _setting("TOOL_EXECUTOR", "local")
    path: str = _setting("TOOL_PATH", "")
    cancel_grace_s: float = _setting("CANCEL_GRACE_S", 5, ge=0)
    cpu_s: int = _setting("TOOL_CPU_S", 0, ge=0)
    memory_bytes: int = _setting("TOOL_MEMORY_BYTES", 0, ge=0)
    file_max_bytes: int = _setting("TOOL_FILE_MAX_BYTES", 0, ge=0)


class KubernetesSettings(_Group):
    """Tools as Kubernetes Jobs."""

    kubeconfig: str | None = _setting("KUBECONFIG", None)
    service_host: str | None = _setting("KUBERNETES_SERVICE_HOST", None)
    service_port: str | None = _setting("KUBERNETES_SERVICE_PORT", None)
    namespace: str | None = _setting("TOOL_NAMESPACE", None)
    image: str | None = _setting("TOOL_IMAGE", None)
    images_allowed: str = _setting("TOOL_IMAGES_ALLOWED", "")
    image_pull_secret: str | None = _setting("TOOL_IMAGE_PULL_SECRET", None)
    cpu: str = _setting("TOOL_CPU", "1")
    cpu_request: str = _setting("TOOL_CPU_REQUEST", "100m")
    cpu_max: str = _setting("TOOL_CPU_MAX", "2")
    memory: str = _setting("TOOL_MEMORY", "512Mi")
    memory_max: str = _setting("TOOL_MEMORY_MAX", "2Gi")
    disk: str = _setting("TOOL_DISK", "2Gi")
    network: Literal["none", "internet"] = _setting("TOOL_NETWORK", "none")
    network_max: Literal["none", "internet"] = _setting("TOOL_NETWORK_MAX", "none")
    runtime_class: str | None = _setting("TOOL_RUNTIME_CLASS", None)
    user_namespaces: bool = _setting("TOOL_USER_NAMESPACES", False)
    profiles: str = _setting("TOOL_PROFILES", "")
    schedule_s: float = _setting("TOOL_SCHEDULE_S", 300, gt=0)
    start_s: float = _setting("TOOL_START_S", 300, gt=0)
    upload_s: float = _setting("TOOL_UPLOAD_S", 30, gt=0)
    ttl_s: int = _setting("TOOL_TTL_S", 3600, ge=60)


class WebhookSettings(_Group):
    """Messages about the ends of runs."""

    secret: SecretStr | None = _setting("WEBHOOK_SECRET", None)
    allow_private: bool = _setting("WEBHOOK_ALLOW_PRIVATE", False)
    timeout_s: float = _setting("WEBHOOK_TIMEOUT_S", 10, gt=0, le=60)
    max_attempts: int = _setting("WEBHOOK_MAX_ATTEMPTS", 10, ge=1, le=100)


class LogSettings(_Group):
    """Logs of runs."""

    batch: int = _setting("LOG_BATCH", 64, ge=1)
    max_bytes: int = _setting("LOG_MAX_BYTES", 10_000_000, ge=10_000)
    buffer_bytes: int = _setting("LOG_BUFFER_BYTES", 8_000_000, ge=100_000)
    mask_patterns: str = _setting("LOG_MASK_PATTERNS", "")
    pack_after_s: float = _setting("LOG_PACK_AFTER_S", 600, ge=0)
    retention_days: float = _setting("LOG_RETENTION_DAYS", 30, ge=0)
    archive: Literal["off", "on"] = _setting("LOG_ARCHIVE", "off")


class OwnLogSettings(_Group):
    """Logs of Tailrun itself."""

    format: Literal["text", "json"] = _setting("LOG_FORMAT", "text")
    level: Literal["debug", "info", "warning", "error"] = _setting("LOG_LEVEL", "info")


class LlmSettings(_Group):
    """Language models."""

    url: str = _setting("LLM_URL", "")
    key: SecretStr | None = _setting("LLM_KEY", None)
    model: str = _setting("LLM_MODEL", "")
    dialect: Literal["chat", "messages"] = _setting("LLM_DIALECT", "chat")
    models_file: Path | None = _setting("LLM_MODELS_FILE", None)
    context_tokens: int = _setting("LLM_CONTEXT_TOKENS", 128_000, ge=1_000)
    max_output_tokens: int = _setting("LLM_MAX_OUTPUT_TOKENS", 8_192, ge=1)
    max_tokens_field: Literal["auto", "max_tokens", "max_completion_tokens"] = _setting(
        "LLM_MAX_TOKENS_FIELD", "auto"
    )
    extra_body: str = _setting("LLM_EXTRA_BODY", "")
    connect_s: float = _setting("LLM_CONNECT_S", 10, gt=0)
    first_token_s: float = _setting("LLM_FIRST_TOKEN_S", 180, gt=0)
    idle_s: float = _setting("LLM_IDLE_S", 60, gt=0)
    timeout_s: float = _setting("LLM_TIMEOUT_S", 900, gt=0)
    retries: int = _setting("LLM_RETRIES", 5, ge=0, le=20)
    lost_max: int = _setting("LLM_LOST_MAX", 2, ge=0)
    pause_max_s: float = _setting("LLM_PAUSE_MAX_S", 3600, ge=0)
    concurrency: int = _setting("LLM_CONCURRENCY", 64, ge=1, le=10_000)
    prices_file: Path | None = _setting("LLM_PRICES_FILE", None)
    ca_file: Path | None = _setting("LLM_CA_FILE", None)
    proxy: SecretStr | None = _setting("LLM_PROXY", None)


class AgentSettings(_Group):
    """What an agent run may take at most, and what it is told."""

    max_calls: int = _setting("AGENT_MAX_CALLS", 50, ge=0)
    max_tool_calls: int = _setting("AGENT_MAX_TOOL_CALLS", 200, ge=0)
    budget_usd: Decimal | None = _setting("AGENT_BUDGET_USD", None, ge=0)
    budget_tokens: int = _setting("AGENT_BUDGET_TOKENS", 2_000_000, ge=0)
    approve: str = _setting("AGENT_APPROVE", "auto")
    wait_s: float = _setting("AGENT_WAIT_S", 86_400, gt=0)
    tool_result_bytes: int = _setting("AGENT_TOOL_RESULT_BYTES", 30_000, ge=1_000, le=1_000_000)


class Settings(BaseSettings):
    """Everything that can be set from outside, in groups.

    Made from flat names, those of the variables in small letters: `Settings(data_dir=…, log_batch=1)`.
    What is not given is read from the environment. A group that is given whole is taken as it is.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="forbid", frozen=True)

    data: DataSettings = DataSettings()
    api: ApiSettings = ApiSettings()
    redis: RedisSettings = RedisSettings()
    storage: StorageSettings = StorageSettings()
    tasks: TasksSettings = TasksSettings()
    projects: ProjectsSettings = ProjectsSettings()
    runs: RunsSettings = RunsSettings()
    stream: StreamSettings = StreamSettings()
    worker: WorkerSettings = WorkerSettings()
    tools: ToolsSettings = ToolsSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    webhooks: WebhookSettings = WebhookSettings()
    log: LogSettings = LogSettings()
    own_log: OwnLogSettings = OwnLogSettings()
    llm: LlmSettings = LlmSettings()
    agent: AgentSettings = AgentSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - passed by the library
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - passed by the library
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - passed by the library
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read what is given, then the environment by flat names."""
        return init_settings, _Environment(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _in_groups(cls, flat: Mapping[str, Any]) -> dict[str, Any]:
        """Sort flat names into the groups; a name that no group has is left over, and so an error.

        A mounted secret, and what `echo` has written, end in a newline that is not part of it.
        """
        groups: dict[str, Any] = {}
        for name, given in flat.items():
            value = given.rstrip("\r\n") if isinstance(given, str) else given
            if value != given and not value:
                continue
            place = _PLACES.get(name.upper())
            if place is None:
                groups[name] = value
            elif place[0] not in flat:
                groups.setdefault(place[0], {})[name.upper()] = value
        return groups

    def flat(self) -> dict[str, Any]:
        """Return every setting by the name of its variable."""
        return {name: getattr(getattr(self, group), field) for name, (group, field) in _PLACES.items()}


def _fields() -> Iterator[tuple[str, str, FieldInfo]]:
    for group, of_group in Settings.model_fields.items():
        for name, field in cast("type[BaseModel]", of_group.annotation).model_fields.items():
            yield group, name, field


VARIABLES: Mapping[str, FieldInfo] = {str(field.validation_alias): field for _, _, field in _fields()}
"""Every environment variable that is read, in order, with its type, default and bounds."""

_PLACES = {str(field.validation_alias): (group, name) for group, name, field in _fields()}
"""The group and the field of each variable."""


class _Environment(EnvSettingsSource):
    """Reads the variables of all groups as the library reads flat ones: capitals or not."""

    def __call__(self) -> dict[str, Any]:
        """Return what is set, by flat names."""
        names = map(str.lower, VARIABLES)
        return {name: self.env_vars[name] for name in names if name in self.env_vars}


def retired_settings() -> list[str]:
    """Return the settings of earlier versions that the environment still holds."""
    held = {name.upper() for name, value in os.environ.items() if value}
    return [name for name in RETIRED if name in held]


def environment() -> Mapping[str, str]:
    """Return the whole environment of this process, for who has to know what must not leave it."""
    return {name: value.rstrip("\r\n") for name, value in os.environ.items()}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_key(text: str) -> bool:
    try:
        return len(base64.urlsafe_b64decode(text)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False
