"""An S3 store for tests that need one of their own: moto's real HTTP server in a thread."""

from __future__ import annotations

from contextlib import closing
from types import TracebackType
from typing import Any, Self

import boto3
from moto.server import ThreadedMotoServer
from pydantic import SecretStr


class S3Server:
    """Serves for as long as the context lasts."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)

    def __enter__(self) -> Self:
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    def settings(self, bucket: str) -> dict[str, Any]:
        """Make a bucket; return the settings that lead to it."""
        with closing(self._client()) as client:
            client.create_bucket(Bucket=bucket)
        return {
            "s3_bucket": bucket,
            "s3_endpoint": self.url,
            "s3_region": "us-east-1",
            "s3_access_key": "k",
            "s3_secret_key": SecretStr("s"),
        }

    def delete(self, bucket: str) -> None:
        """Delete an empty bucket."""
        delete_bucket(self.url, bucket)

    def _client(self) -> Any:
        return _client(self.url)


def delete_bucket(url: str, bucket: str) -> None:
    """Delete an empty bucket of the store at `url`."""
    with closing(_client(url)) as client:
        client.delete_bucket(Bucket=bucket)


def _client(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="k",
        aws_secret_access_key="s",
    )
