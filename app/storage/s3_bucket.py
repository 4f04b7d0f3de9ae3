"""The one importer of boto3: blocking calls on one bucket, with typed errors.

Works with any S3-compatible store: paths instead of host names, checksums only where the
protocol requires them (many stores know no others), and deletes one by one, because the bulk
call needs a checksum that older stores refuse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from app.core.errors import NotFound, StorageError

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

_EXECUTABLE = {"executable": "1"}
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S, _ATTEMPTS = 5, 20, 4
_CONNECTIONS = 48
# Parts of large files go one after another: the parallel unit here is the file.
_TRANSFER = TransferConfig(use_threads=False, multipart_threshold=16 << 20, multipart_chunksize=16 << 20)


class Object(NamedTuple):
    """One object: size in bytes, time in microseconds, in whole seconds; `etag` tells contents apart.

    `executable` is None where a list does not tell.
    """

    key: str
    size: int
    modified_at: int
    etag: str = ""
    executable: bool | None = None


class ObjectContent(NamedTuple):
    """An object's content, open: the caller closes it."""

    body: StreamingBody
    properties: Mapping[str, str]

    @property
    def executable(self) -> bool:
        """Whether it is a program."""
        return self.properties.get("executable") == "1"


class Bucket:
    """One bucket. Thread-safe and blocking.

    Raises `NotFound` for an object that isn't there, `StorageError` when the store does not
    answer or refuses.
    """

    def __init__(
        self,
        name: str,
        *,
        endpoint: str | None,
        region: str | None,
        access_key: str | None,
        secret_key: str | None,
    ) -> None:
        self.name = name
        session = boto3.session.Session(access_key, secret_key, region_name=region)
        self._client: S3Client = session.client(
            "s3",
            endpoint_url=endpoint,
            config=Config(
                signature_version="s3v4",  # else addresses are signed as in 2006 for some regions
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                connect_timeout=_CONNECT_TIMEOUT_S,
                read_timeout=_READ_TIMEOUT_S,
                max_pool_connections=_CONNECTIONS,
                s3={"addressing_style": "path"},
            ),
        )

    def check(self) -> None:
        """Raise `StorageError` unless the bucket is there and may be used."""
        try:
            with self._explained("the bucket"):
                self._client.head_bucket(Bucket=self.name)
        except NotFound:
            raise StorageError(f"There is no bucket {self.name!r} in the store.") from None

    def list(self, prefix: str) -> list[Object]:
        """Describe all objects whose key starts with `prefix`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        with self._explained(prefix):
            return [_object(item) for page in pages for item in page.get("Contents", [])]

    def each(self, prefix: str) -> Iterator[Object]:
        """Yield all objects whose key starts with `prefix`, a page at a time: there may be millions."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        with self._explained(prefix):
            for page in pages:
                yield from map(_object, page.get("Contents", []))

    def head(self, key: str) -> Object:
        with self._explained(key):
            head = self._client.head_object(Bucket=self.name, Key=key)
        at = int(head["LastModified"].timestamp()) * 1_000_000
        executable = head["Metadata"].get("executable") == _EXECUTABLE["executable"]
        return Object(key, head["ContentLength"], at, head.get("ETag", ""), executable)

    def get(self, key: str, start: int = 0, end: int | None = None) -> ObjectContent:
        """Open bytes `start` to `end` (exclusive) of an object; `EOFError` if it has none there."""
        wanted: dict[str, Any] = {}
        if start > 0 or end is not None:
            wanted["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        with self._explained(key):
            answer = self._client.get_object(Bucket=self.name, Key=key, **wanted)
        return ObjectContent(answer["Body"], answer["Metadata"])

    def read(self, content: ObjectContent, size: int, key: str) -> bytes:
        """Read up to `size` bytes; empty at the end."""
        with self._explained(key):
            return content.body.read(size)

    def put(
        self,
        key: str,
        file: IO[bytes],
        *,
        executable: bool = False,
        properties: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Store an object, whole or not at all, with what is to be known of it besides its content."""
        extra = {"Metadata": {**properties, **(_EXECUTABLE if executable else {})}}
        with self._explained(key):
            self._client.upload_fileobj(file, self.name, key, ExtraArgs=extra, Config=_TRANSFER)

    def copy(self, source: str, key: str) -> None:
        """Copy an object inside of the store."""
        with self._explained(source):
            self._client.copy({"Bucket": self.name, "Key": source}, self.name, key, Config=_TRANSFER)

    def delete(self, key: str) -> None:
        """Remove an object; one that isn't there is no error."""
        with self._explained(key):
            self._client.delete_object(Bucket=self.name, Key=key)

    def presigned(self, method: Literal["get_object", "put_object"], key: str, seconds: int) -> str:
        """Return an address that allows its holder this one request, for at most 7 days."""
        with self._explained(key):
            return self._client.generate_presigned_url(
                method, Params={"Bucket": self.name, "Key": key}, ExpiresIn=seconds
            )

    def close(self) -> None:
        self._client.close()

    @contextlib.contextmanager
    def _explained(self, key: str) -> Generator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in {"404", "NoSuchKey", "NotFound"}:
                raise NotFound(f"There is no file {_shown(key)!r}.") from None
            if code in {"416", "InvalidRange", "RequestedRangeNotSatisfiable"}:
                raise EOFError from None
            raise StorageError(f"The S3 store refused {error.operation_name}: {code}.") from error
        except BotoCoreError as error:
            raise StorageError(f"The S3 store does not answer ({type(error).__name__}).") from error


def _object(item: Any) -> Object:
    at = int(item["LastModified"].timestamp()) * 1_000_000
    return Object(item["Key"], item["Size"], at, item.get("ETag", ""))


def _shown(key: str) -> str:
    """Return the path alone: a user knows nothing of keys."""
    return key.split("/", 4)[-1]
