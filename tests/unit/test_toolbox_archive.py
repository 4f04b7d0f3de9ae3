"""The reader of archives: exact for ours, and nothing but a refusal for anybody else's."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox.archive import Damaged, Entry, Limits, Packer, Refused, entries, is_plain

LIMITS = Limits(files=20, bytes=1_000_000, file_bytes=500_000)
NAMES = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=300).filter(is_plain)
FILES = st.dictionaries(NAMES, st.binary(max_size=3000), max_size=6)


def pack(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    packer = Packer(out.write)
    for path, data in files.items():
        packer.add(Entry(path, len(data), 1_700_000_000_000_000_000, 0o755), io.BytesIO(data).read)
    packer.close()
    return out.getvalue()


def unpack(archive: bytes, limits: Limits = LIMITS, step: int = 1 << 20) -> dict[str, bytes]:
    source = io.BytesIO(archive)
    found = entries(lambda size: source.read(min(size, step)), limits)
    return {entry.path: b"".join(content) for entry, content in found}


@given(FILES, st.integers(1, 5000))
def test_a_round_trip_in_any_pieces(files: dict[str, bytes], step: int) -> None:
    """Any names and contents, however the network cuts them; other readers see the same."""
    archive = pack(files)
    assert unpack(archive, step=step) == files
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert {info.name: (info.mode, info.mtime) for info in tar} == {
            path.rstrip("/"): (0o755, 1_700_000_000) for path in files
        }


@pytest.mark.parametrize("when", [-(10**19), -1, 0, 10**19, 10**25])
def test_no_time_of_a_file_makes_an_archive_that_is_refused(when: int) -> None:
    """File systems know more than 64 bits of nanoseconds do."""
    out = io.BytesIO()
    packer = Packer(out.write)
    packer.add(Entry("a", 1, when), io.BytesIO(b"x").read)
    packer.close()
    assert unpack(out.getvalue()) == {"a": b"x"}


@given(FILES, st.data())
def test_damage_is_never_anything_but_refused(files: dict[str, bytes], data: st.DataObject) -> None:
    """Bytes changed, cut or added inside of the tar: no other error than the two, and no path outside."""
    tar = bytearray(gzip.decompress(pack({"a/b": b"content", **files})))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(tar) - 1, 1600)))
        tar[at : at + 1] = data.draw(st.binary(max_size=3))
    if data.draw(st.booleans()):
        _mend_checksum(tar)
    try:
        found = unpack(gzip.compress(bytes(tar), 1))
    except (Damaged, Refused):
        return
    assert all(is_plain(path) for path in found)


def _mend_checksum(tar: bytearray) -> None:
    """Make the first header pass for whole, so that what is behind its checksum is looked at."""
    if len(tar) >= 512:
        total = 256 + sum(tar[:148]) + sum(tar[156:512])
        tar[148:156] = b"%06o\0 " % total


@given(st.binary(max_size=2000))
def test_noise(noise: bytes) -> None:
    """Also inside of a sound gzip."""
    for archive in (noise, gzip.compress(noise), zlib.compress(noise)):
        with pytest.raises((Damaged, Refused)):
            unpack(archive)


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0", "\ud800"]
)
def test_paths_that_are_not_plain(path: str) -> None:
    """One form, downwards, and writable everywhere."""
    assert not is_plain(path)


def test_limits_hold_while_it_is_read() -> None:
    """A bomb ends where the limit is, and was not held in memory."""
    bomb = pack({f"f{n}": bytes(400_000) for n in range(5)})
    assert len(bomb) < 20_000
    with pytest.raises(Refused, match="more than 1000000 bytes"):
        unpack(bomb)
    with pytest.raises(Refused, match="more than 20 files"):
        unpack(pack({f"f{n}": b"" for n in range(21)}))
    with pytest.raises(Refused, match="500000 bytes"):
        unpack(pack({"f": bytes(500_001)}))


def test_a_file_that_shrinks_is_an_error() -> None:
    """What is packed is what was promised."""
    packer = Packer(io.BytesIO().write)
    with pytest.raises(OSError, match="shorter"):
        packer.add(Entry("a", 10, 0), io.BytesIO(b"short").read)


def test_what_is_not_read_is_skipped() -> None:
    """A caller may leave content where it is."""
    source = io.BytesIO(pack({"a": b"1" * 1000, "b": b"2"}))
    assert [entry.path for entry, _ in entries(source.read, LIMITS)] == ["a", "b"]
