"""How a stored file looks over HTTP: ranges, types, tags and names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import RangeNotSatisfiable
from app.routes.files import byte_range, content_type, disposition, etag, headers, not_modified
from app.storage.workspace import FileInfo

FILE = FileInfo("a/b.txt", 10, 1_790_000_000_123_456)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-3", (0, 4)),
        ("bytes=3-", (3, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=0-99", (0, 10)),
        ("Bytes=9-9", (9, 10)),
        (" bytes=0-0 ", (0, 1)),
        (None, None),
        ("", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=5-2", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=" + "9" * 5000 + "-", None),
    ],
)
def test_one_range_is_understood_and_anything_else_means_all(
    header: str | None, expected: tuple[int, int] | None
) -> None:
    assert byte_range(header, 10) == expected


@pytest.mark.parametrize(
    ("header", "size"),
    [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-1", 0)],
)
def test_a_range_outside_of_the_file_is_not_satisfiable(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable):
        byte_range(header, size)


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_a_range_never_leaves_the_file(size: int, first: int, last: int) -> None:
    try:
        part = byte_range(f"bytes={first}-{last}", size)
    except RangeNotSatisfiable:
        assert first >= size
    else:
        assert part == ((first, min(last + 1, size)) if first <= last else None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.txt", "text/plain"),
        ("run.log", "text/plain"),
        ("x/chart.svg", "image/svg+xml"),
        ("a.json", "application/json"),
        ("a.tar.gz", "application/gzip"),
        ("a.svgz", "application/gzip"),
        ("noending", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
        ("http://x/y.txt?z", "application/octet-stream"),
        ("a#b.png", "image/png"),
    ],
)
def test_the_type_is_guessed_from_the_name_alone(path: str, expected: str) -> None:
    assert content_type(path) == expected


@pytest.mark.parametrize(
    "name",
    [
        "x.html",
        "x.htm",
        "x.xhtml",
        "x.svg",
        "x.svgz",
        "x.xml",
        "x.xsl",
        "x.js",
        "x.mjs",
        "x.pdf",
        "x.swf",
        "x",
    ],
)
def test_what_could_run_in_a_browser_is_a_download(name: str) -> None:
    made = headers(FileInfo(name, 1, 1))
    assert made["Content-Disposition"].startswith("attachment;")
    assert made["X-Content-Type-Options"] == "nosniff"
    assert made["Content-Security-Policy"] == "sandbox"


@pytest.mark.parametrize("name", ["x.txt", "x.log", "x.png", "x.json", "x.md", "x.csv"])
def test_what_a_browser_merely_shows_is_shown(name: str) -> None:
    assert headers(FileInfo(name, 1, 1))["Content-Disposition"].startswith("inline;")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/plain.txt", 'attachment; filename="plain.txt"'),
        ('q"uo;te', "attachment; filename=\"q_uo;te\"; filename*=UTF-8''q%22uo%3Bte"),
        ("ä b", "attachment; filename=\"_ b\"; filename*=UTF-8''%C3%A4%20b"),
        ("50%", "attachment; filename=\"50_\"; filename*=UTF-8''50%25"),
    ],
)
def test_names_survive_the_header(path: str, expected: str) -> None:
    assert disposition(path) == expected


def test_a_client_that_has_this_state_gets_no_copy() -> None:
    tag = etag(FILE)
    for known in (tag, f'"x", {tag}', tag.removeprefix("W/"), "*"):
        assert not_modified(FILE, known)
    for other in (None, "", '"x"', etag(FileInfo("a/b.txt", 11, FILE.modified_at))):
        assert not not_modified(FILE, other)
