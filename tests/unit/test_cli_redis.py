"""Replies look as redis-cli prints them; only reading is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from app.commands.redis import formatted
from app.core.errors import InvalidRequest
from app.redis.inspect import require_read_only


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (0, "(integer) 0"),
        (None, "(nil)"),
        ([], "(empty array)"),
        (b"plain", '"plain"'),
        (b'q"\\\n\x00\xc3\xbc', '"q\\"\\\\\\n\\x00\\xc3\\xbc"'),
        ([b"a", 1], '1) "a"\n2) (integer) 1'),
        ([[b"1-0", [b"e", b"x"]]], '1) 1) "1-0"\n   2) 1) "e"\n      2) "x"'),
        ([b"v"] * 10, "\n".join([*(f' {n}) "v"' for n in range(1, 10)), '10) "v"'])),
    ],
)
def test_formats(reply: Any, expected: str) -> None:
    assert formatted(reply) == expected


def test_status_replies_have_no_quotes() -> None:
    assert formatted(b"PONG", plain=True) == "PONG"
    assert formatted(b"# Server\r\nredis_version:7\r\n", plain=True) == "# Server\nredis_version:7"


@pytest.mark.parametrize("command", [["llen", "k"], ["LRANGE", "k", "0", "-1"], ["xinfo", "stream", "k"]])
def test_reading_is_allowed(command: list[str]) -> None:
    require_read_only(command)


@pytest.mark.parametrize(
    "command",
    [
        ["SET", "a", "b"],
        ["FLUSHALL"],
        ["BLPOP", "k", "0"],
        ["GETDEL", "k"],
        ["EVAL", "x"],
        ["CLIENT", "KILL"],
        ["XINFO"],
    ],
)
def test_changing_is_not(command: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="only read"):
        require_read_only(command)
