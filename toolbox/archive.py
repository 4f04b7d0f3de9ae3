"""The archive in which a workspace travels, both ways: tar.gz of regular files, and nothing else.

Who packs it may be a stranger (the worker reads what was made beside untrusted code), so reading
is a small loop over headers of its own instead of `tarfile`'s: that one obeys extended headers of
any size and sparse maps, all in memory, before a caller can refuse. Here whatever is not a plain
file with a plain relative name is refused, and everything is counted while it is unpacked. Both
ways stream: memory does not grow with the archive.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

PIECE = 256 * 1024
"""Bytes that move at a time."""

_BLOCK = tarfile.BLOCKSIZE
_GZIP = 31  # zlib's window size, plus 16 for a gzip header
_LEVEL = 1  # networks inside of a cluster are faster than the better levels
_HEADER_BYTES = 16_384
_TRAILER_BYTES = 64 * 1024
_PLAIN = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE})

Read = Callable[[int], bytes]
"""Returns up to that many bytes, fewer only for lack of them just now, none at the end."""


class Damaged(Exception):
    """The archive ends early, or is none: worth another try where it came over a network."""


class Refused(Exception):
    """The archive holds something that it may not."""


class Limits(NamedTuple):
    """The limits of an archive: files, bytes of all their content, bytes of one file."""

    files: int
    bytes: int
    file_bytes: int


class Entry(NamedTuple):
    """One file of an archive; time in nanoseconds since the epoch, `mode` its nine bits of permission."""

    path: str
    size: int
    mtime_ns: int
    mode: int = 0o644


def entries(read: Read, limits: Limits) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """Yield each file and its content, which is to be read before the next one.

    Raises:
        Damaged, Refused: see there; the caller discards what was unpacked before.
    """
    source = _Inflated(read)
    left = limits.bytes
    for count, entry in enumerate(_headers(source), 1):
        if count > limits.files:
            raise Refused(f"more than {limits.files} files")
        left -= entry.size
        if left < 0:
            raise Refused(f"more than {limits.bytes} bytes")
        if entry.size > limits.file_bytes:
            raise Refused(f"{_shown(entry.path)} has more than {limits.file_bytes} bytes")
        content = _content(source, entry.size)
        yield entry, content
        for _ in content:
            pass  # what the caller did not want
    source.expect_end()


def is_plain(path: str) -> bool:
    """Whether `path` is relative, in one form, leads nowhere but down, and every store can write it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in path and all(part not in {"", ".", ".."} for part in path.split("/"))


class Packer:
    """Writes an archive piece by piece to `write`; `close` makes it whole."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._gzip = zlib.compressobj(_LEVEL, wbits=_GZIP)

    def add(self, entry: Entry, read: Read) -> None:
        """Add a file; OSError if it has become shorter than `entry.size`."""
        self._put(_header(entry))
        left = entry.size
        while left:
            piece = read(min(left, PIECE))
            if not piece:
                raise OSError(f"{_shown(entry.path)} became shorter while it was packed")
            left -= len(piece)
            self._put(piece)
        self._put(bytes(-entry.size % _BLOCK))

    def add_bytes(self, path: str, data: bytes) -> None:
        """Add a file that is in memory."""
        self._put(_header(Entry(path, len(data), 0)) + data + bytes(-len(data) % _BLOCK))

    def close(self) -> None:
        """Write the end."""
        self._put(bytes(2 * _BLOCK))
        self._write(self._gzip.flush())

    def _put(self, data: bytes) -> None:
        if packed := self._gzip.compress(data):
            self._write(packed)


class _Inflated:
    """Reads exactly as much as is asked for from a gzip stream, however it arrives."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._gzip = zlib.decompressobj(_GZIP)

    def some(self, size: int) -> bytes:
        """Return 1 to `size` bytes; none at the end of the stream."""
        while not self._gzip.eof:
            packed = self._gzip.unconsumed_tail or self._read(PIECE)
            if not packed:
                raise Damaged("it ends early")
            try:
                data = self._gzip.decompress(packed, size)
            except zlib.error:
                raise Damaged("it is not gzip, or broken") from None
            if data:
                return data
        return b""

    def exactly(self, size: int) -> bytes:
        """Return `size` bytes; only for what is known to be small."""
        data = b""
        while len(data) < size:
            if not (piece := self.some(size - len(data))):
                raise Damaged("it ends early")
            data += piece
        return data

    def expect_end(self) -> None:
        """Read on to the end of the stream, where nothing but the filling of the last record may come."""
        size = 0
        while data := self.some(_BLOCK):
            size += len(data)
            if data.strip(b"\0") or size > _TRAILER_BYTES:
                raise Refused("something follows its end")
        if self._gzip.unused_data or self._read(1):
            raise Refused("something follows its end")


def _headers(source: _Inflated) -> Iterator[Entry]:
    while (block := source.exactly(_BLOCK)).strip(b"\0"):
        info, more = _parsed(block), dict[str, str]()
        if info.type == tarfile.XHDTYPE:
            if not 0 <= info.size <= _HEADER_BYTES:
                raise Refused("an extended header is too long")
            more = _records(source.exactly(info.size + -info.size % _BLOCK)[: info.size])
            info = _parsed(source.exactly(_BLOCK))
        yield _entry(info, more)


def _parsed(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError):
        raise Damaged("a header is broken") from None


def _entry(info: tarfile.TarInfo, more: dict[str, str]) -> Entry:
    path = more.get("path", info.name)
    if info.type not in _PLAIN:
        raise Refused(f"{_shown(path)} is no plain file")
    if not is_plain(path):
        raise Refused(f"{_shown(path)} is no plain relative path")
    try:
        size, mtime = int(more.get("size", info.size)), float(more.get("mtime", info.mtime))
        mtime_ns = int(mtime * 1e9)
    except (ValueError, OverflowError):
        raise Refused(f"{_shown(path)} has no sound size or time") from None
    if size < 0 or abs(mtime_ns) >= _END_NS:
        raise Refused(f"{_shown(path)} has no sound size or time")
    return Entry(path, size, mtime_ns, info.mode & 0o777)


def _records(data: bytes) -> dict[str, str]:
    """Return the values of an extended header: records of length, space, key, `=`, value, LF (POSIX pax)."""
    found: dict[str, str] = {}
    while data:
        length, _, rest = data.partition(b" ")
        if not length.isdigit() or len(length) > len(str(_HEADER_BYTES)) or not rest:
            raise Refused("an extended header is malformed")
        key, equals, value = data[len(length) + 1 : int(length)].partition(b"=")
        if not equals or not value.endswith(b"\n") or int(length) > len(data):
            raise Refused("an extended header is malformed")
        try:
            found[key.decode()] = value[:-1].decode()
        except UnicodeDecodeError:
            raise Refused("an extended header is no UTF-8") from None
        data = data[int(length) :]
    return found


def _content(source: _Inflated, size: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = source.some(min(left, PIECE))
        if not piece:
            raise Damaged("it ends early")
        left -= len(piece)
        yield piece
    source.exactly(-size % _BLOCK)


_END_NS = 1 << 63
_MOST_S = _END_NS // 1_000_000_000 - 1
"""In the year 2262; file systems know later times, which must not make an archive that is refused."""


def _header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.path)
    info.size, info.mode = entry.size, entry.mode & 0o777
    info.mtime = max(-_MOST_S, min(entry.mtime_ns // 1_000_000_000, _MOST_S))
    return info.tobuf(tarfile.PAX_FORMAT)


def _shown(path: str) -> str:
    return ascii(path[:200])
