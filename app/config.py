"""Settings: the only reader of the environment.

Each field is one environment variable of the same name in capitals and has a row in
docs/configuration.md (a test holds the two together). Empty values count as unset.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_KEY_BYTES = 32


class Settings(BaseSettings):
    """Everything that can be set from outside. Times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    # Where to serve and where to keep things
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    staging_port: int | None = Field(None, ge=1, le=65535)
    data_dir: Path = Path(".tailrun")
    database_url: SecretStr | None = None
    up_workers: int = Field(1, ge=0, le=64)

    # Redis
    redis_url: SecretStr | None = None
    redis_port: int | None = Field(None, ge=0, le=65535)
    redis_prefix: str = ""
    redis_ca_file: Path | None = None
    redis_cert_file: Path | None = None
    redis_key_file: Path | None = None
    redis_sentinel_username: str | None = None
    redis_sentinel_password: SecretStr | None = None
    upstash_redis_rest_url: str | None = None
    upstash_redis_rest_token: SecretStr | None = None
    tail_ttl_s: int = Field(300, ge=1)

    # Workspace
    s3_bucket: str | None = None
    s3_endpoint: str = "https://sos-ch-gva-2.exo.io"
    s3_region: str = "ch-gva-2"
    s3_access_key: str | None = None
    s3_secret_key: SecretStr | None = None
    file_max_bytes: int = Field(100_000_000, ge=1)
    workspace_max_bytes: int = Field(1_000_000_000, ge=1)
    workspace_max_files: int = Field(10_000, ge=1)
    tool_sync_url: str | None = None

    # Tasks and projects
    tasks_file: Path | None = None
    operation_type: str = ""
    projects_key: SecretStr | None = None
    projects_url: str = ""
    projects_token: SecretStr | None = None
    projects_timeout_s: float = Field(5, gt=0)

    # API
    auth: Literal["on", "off"] = "on"
    api_token: SecretStr | None = None
    cors_origins: str = ""
    user_backlog_max: int = Field(10_000, ge=1)
    body_max_bytes: int = Field(5_000_000, ge=1)
    http_head_timeout_s: float = Field(15, gt=0)
    http_body_timeout_s: float = Field(30, gt=0)
    stream_token_ttl_s: int = Field(300, ge=1)
    stream_ping_s: float = Field(15, gt=0)
    stream_limit: int = Field(2_000, ge=1)
    user_stream_max: int = Field(500, ge=1)
    stream_send_timeout_s: float = Field(30, gt=0)
    stream_linger_s: float = Field(0.02, ge=0, le=1)

    # Worker
    worker_concurrency: int = Field(10, ge=1, le=1000)
    worker_host: str = "127.0.0.1"
    worker_port: int = Field(9090, ge=0, le=65535)
    lease_s: float = Field(5, ge=4)
    drain_s: float = Field(30, ge=0)
    job_timeout_s: float = Field(3600, gt=0)
    job_max_attempts: int = Field(3, ge=1)
    job_max_redeliveries: int = Field(3, ge=0)
    infrastructure_wait_s: float = Field(600, ge=0)
    retry_base_s: float = Field(1, ge=0)
    retry_max_s: float = Field(300, ge=0)
    min_free_memory_bytes: int = Field(64_000_000, ge=0)
    min_free_disk_bytes: int = Field(100_000_000, ge=0)
    min_free_fds: int = Field(64, ge=0)
    cancel_grace_s: float = Field(5, ge=0)
    tool_executor: Literal["local", "kubernetes"] = "local"
    tool_path: str = ""
    tool_cpu_s: int = Field(0, ge=0)
    tool_memory_bytes: int = Field(0, ge=0)
    tool_file_max_bytes: int = Field(0, ge=0)

    # Tools as Kubernetes Jobs
    kubeconfig: str | None = None
    kubernetes_service_host: str | None = None
    kubernetes_service_port: str | None = None
    tool_namespace: str | None = None
    tool_image: str | None = None
    tool_images_allowed: str = ""
    tool_image_pull_secret: str | None = None
    tool_cpu: str = "1"
    tool_cpu_request: str = "100m"
    tool_cpu_max: str = "2"
    tool_memory: str = "512Mi"
    tool_memory_max: str = "2Gi"
    tool_disk: str = "2Gi"
    tool_network: Literal["none", "internet"] = "none"
    tool_network_max: Literal["none", "internet"] = "none"
    tool_runtime_class: str | None = None
    tool_user_namespaces: bool = False
    tool_profiles: str = ""
    tool_schedule_s: float = Field(300, gt=0)
    tool_start_s: float = Field(300, gt=0)
    tool_upload_s: float = Field(30, gt=0)
    tool_ttl_s: int = Field(3600, ge=60)

    # Webhooks
    webhook_secret: SecretStr | None = None
    webhook_allow_private: bool = False
    webhook_timeout_s: float = Field(10, gt=0, le=60)
    webhook_max_attempts: int = Field(10, ge=1, le=100)
    webhook_retry_base_s: float = Field(5, gt=0)
    webhook_retry_max_s: float = Field(3600, gt=0)

    # Logs of runs
    log_batch: int = Field(64, ge=1)
    log_linger_s: float = Field(0.02, ge=0)
    log_max_bytes: int = Field(10_000_000, ge=10_000)
    log_buffer_bytes: int = Field(8_000_000, ge=100_000)
    log_mask_patterns: str = ""
    log_pack_after_s: float = Field(600, ge=0)
    log_retention_days: float = Field(30, ge=0)
    log_archive: Literal["off", "on"] = "off"
    usage_every_s: float = Field(3600, ge=0)

    # Logs of Tailrun itself
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # Language models
    llm_url: str = ""
    llm_key: SecretStr | None = None
    llm_model: str = ""
    llm_dialect: Literal["chat", "messages"] = "chat"
    llm_models_file: Path | None = None
    llm_context_tokens: int = Field(128_000, ge=1_000)
    llm_max_output_tokens: int = Field(8_192, ge=1)
    llm_max_tokens_field: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    llm_extra_body: str = ""
    llm_connect_s: float = Field(10, gt=0)
    llm_first_token_s: float = Field(180, gt=0)
    llm_idle_s: float = Field(60, gt=0)
    llm_timeout_s: float = Field(900, gt=0)
    llm_retries: int = Field(5, ge=0, le=20)
    llm_concurrency: int = Field(64, ge=1, le=10_000)
    llm_prices_file: Path | None = None
    llm_ca_file: Path | None = None
    llm_proxy: SecretStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_line_ends(cls, given: Any) -> Any:
        """A mounted secret, and what `echo` has written, end in a newline that nobody means."""
        if not isinstance(given, dict):
            return given
        values = {
            name: value.rstrip("\r\n") if isinstance(value, str) else value for name, value in given.items()
        }
        return {name: value for name, value in values.items() if value or given[name] == value}

    @field_validator("projects_key")
    @classmethod
    def _keys(cls, keys: SecretStr | None) -> SecretStr | None:
        for key in keys.get_secret_value().split(",") if keys else ():
            if not _is_key(key.strip()):
                raise ValueError("holds keys of 32 bytes in URL-safe base64, separated by commas")
        return keys

    @cached_property
    def effective_database_url(self) -> str:
        """The database to use: the one that is set, or SQLite below the data folder."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{quote(os.fsencode(self.data_dir.resolve() / 'tailrun.db'))}"

    @cached_property
    def effective_redis_url(self) -> str:
        """The Redis to use: the one that is set, or the port of this machine."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        return f"redis://127.0.0.1:{self.redis_port or 6379}/0"

    @property
    def project_keys(self) -> str | None:
        """The keys of what projects keep secret, the sealing one first, separated by commas."""
        return self.projects_key.get_secret_value() if self.projects_key else None

    @cached_property
    def tmp_dir(self) -> Path:
        """Where each tool run has its own temporary folder."""
        return self.data_dir.resolve() / "tmp"


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
