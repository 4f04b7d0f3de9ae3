"""How a stored file looks over HTTP: its type, its tag, its ranges, and its chains.

What a tool wrote must never run in the API's origin, with the token that a browser holds
for it. So types are not sniffed, everything is in a sandbox, and only types that a browser
merely shows are shown; the rest is a download.
"""

from __future__ import annotations

import mimetypes
import re
from email.utils import formatdate
from urllib.parse import quote

from app.errors import RangeNotSatisfiable
from app.storage.workspace import FileInfo

# The built-in table alone: what a machine has in /etc/mime.types must not change an answer.
_TYPES = mimetypes.MimeTypes()
for _suffix, _type in {
    ".jsonl": "application/x-ndjson",
    ".log": "text/plain",
    ".md": "text/markdown",
    ".ndjson": "application/x-ndjson",
    ".webp": "image/webp",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}.items():
    _TYPES.add_type(_type, _suffix)
_PACKED = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "br": "application/octet-stream",
    "compress": "application/octet-stream",
}
_SHOWN = frozenset(
    {
        *("text/plain", "text/csv", "text/markdown", "text/x-python", "application/json"),
        *("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp"),
        *("audio/mpeg", "audio/x-wav", "video/mp4", "video/webm"),
    }
)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)


def content_type(path: str) -> str:
    """Guess the type from the name; `application/octet-stream` if it says nothing."""
    guess, packed = _TYPES.guess_type("file:" + quote(path))
    if packed is not None:
        return _PACKED.get(packed, "application/octet-stream")
    return guess or "application/octet-stream"


def etag(file: FileInfo) -> str:
    """Return the weak tag of this state of a file."""
    return f'W/"{file.size:x}-{file.modified_at:x}"'


def not_modified(file: FileInfo, if_none_match: str | None) -> bool:
    """Whether the client has this state of the file already."""
    if if_none_match is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or etag(file).removeprefix("W/") in tags


def headers(file: FileInfo) -> dict[str, str]:
    """Return the headers of a file's content, whole or in part, but for its length."""
    kind = content_type(file.path)
    return {
        "Content-Type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
        "Content-Disposition": disposition(file.path, inline=kind in _SHOWN),
        "Content-Security-Policy": "sandbox",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
        "Accept-Ranges": "bytes",
        "ETag": etag(file),
        "Last-Modified": formatdate(file.modified_at // 1_000_000, usegmt=True),
    }


def disposition(path: str, *, inline: bool = False) -> str:
    """Return the Content-Disposition with the file's own name, in ASCII and in full (RFC 6266)."""
    name = path.rsplit("/", 1)[-1]
    plain = re.sub(r"[^ !#-\[\]-~]|%", "_", name)
    full = f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else ""
    return f'{"inline" if inline else "attachment"}; filename="{plain}"{full}'


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the wanted bytes as start and end (exclusive), or None for all.

    As RFC 9110 wants it, what is not understood (several ranges, other units) is ignored.

    Raises:
        RangeNotSatisfiable: the range lies outside of the file.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group(1, 2) == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if first and last and int(last) < int(first):
        return None
    if start >= end:
        raise RangeNotSatisfiable(f"The file has {size} bytes; ask for a range within them.")
    return start, end
