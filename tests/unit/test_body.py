"""Bodies: read with a bound, parsed as JSON, checked field by field."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from starlette.requests import Request

from app.core.errors import InvalidRequest, TooLarge, Unprocessable
from app.routes.body import MAX_DEPTH, check, parse_object, read_json
from app.routes.schemas import ExecuteOn, NewRun, NewToken


class Sender:
    """A client that sends pieces, and counts how many were taken from it."""

    def __init__(self, pieces: Sequence[bytes], *, hang_up: bool = False) -> None:
        self.pieces = list(pieces)
        self.hang_up = hang_up
        self.taken = 0

    async def receive(self) -> dict[str, object]:
        if self.taken == len(self.pieces):
            assert self.hang_up
            return {"type": "http.disconnect"}
        piece = self.pieces[self.taken]
        self.taken += 1
        more = self.hang_up or self.taken < len(self.pieces)
        return {"type": "http.request", "body": piece, "more_body": more}

    def request(self, **headers: str) -> Request:
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        return Request({"type": "http", "method": "POST", "headers": raw}, self.receive)


async def test_a_body_is_json_whatever_the_content_type() -> None:
    """`curl -d` sends a form type."""
    request = Sender([b'{"a":', b" 1}"]).request(content_type="application/x-www-form-urlencoded")
    assert await read_json(request, 100) == {"a": 1}


async def test_an_announced_size_over_the_limit_is_refused_unread() -> None:
    """Nothing of a body that says it is too large is read."""
    sender = Sender([b"x" * 50])
    with pytest.raises(TooLarge, match="larger than 10 bytes"):
        await read_json(sender.request(content_length="50"), 10)
    assert sender.taken == 0


async def test_a_chunked_body_is_refused_at_the_limit() -> None:
    """Without a Content-Length reading stops with the piece that goes over."""
    sender = Sender([b"x" * 6] * 100)
    with pytest.raises(TooLarge):
        await read_json(sender.request(), 10)
    assert sender.taken == 2


async def test_a_body_of_just_the_limit_is_read() -> None:
    """The limit itself is allowed."""
    assert await read_json(Sender([b'{"a": 123}']).request(content_length="10"), 10) == {"a": 123}


async def test_a_body_that_is_cut_off_is_a_bad_request() -> None:
    """A client that hangs up gets no traceback into the log."""
    with pytest.raises(InvalidRequest, match="closed"):
        await read_json(Sender([b'{"a":'], hang_up=True).request(), 100)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"action=create&prompt=x", "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": Infinity}', "not valid JSON"),
        (b'{"a": 1e999}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"[1]", "must be a JSON object, not a list"),
        (b'"x"', "must be a JSON object, not a string"),
        (b"null", "must be a JSON object, not null"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper than 64"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_reason(raw: bytes, says: str) -> None:
    """Each kind of broken body has a message that says what is wrong."""
    with pytest.raises(InvalidRequest, match=says) as caught:
        parse_object(raw)
    assert caught.value.status == 400


def test_the_deepest_allowed_body_is_taken() -> None:
    """The limit itself is allowed, one level more is not."""
    inner = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert parse_object(b'{"a":' + inner + b"}")
    with pytest.raises(InvalidRequest):
        parse_object(b'{"a":[' + inner + b"]}")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"promt": "x"}, r"promt is not a field; did you mean 'prompt'\?"),
        ({"prompt": 5}, "prompt must be a string, not a number"),
        ({"prompt": " "}, "prompt must not be blank"),
        ({"prompt": "x" * 100_001}, "prompt must be at most 100000 characters"),
        ({"argv": []}, "argv"),
        ({"argv": [""]}, "name of a program"),
        ({"argv": ["a", "b\0"]}, r"argv\[1\] must not hold a NUL"),
        ({"argv": ["a", "x" * 100_001]}, "argv must be at most 100000 bytes"),
        ({"argv": "ls"}, "argv must be a list, not a string"),
        ({"prompt": "x", "start": "yes"}, "start must be true or false"),
        ({"prompt": "x", "labels": {"k" * 64: ""}}, "labels must have keys of 1 to 63"),
        ({"prompt": "x", "labels": {"": ""}}, "labels must have keys of 1 to 63"),
        ({"prompt": "x", "labels": {"k": "v" * 256}}, "at most 255"),
        ({"prompt": "x", "labels": {str(n): "" for n in range(17)}}, "labels must hold at most 16"),
        ({"prompt": "x", "labels": {"k": 1}}, "labels.k must be a string"),
        ({"prompt": "x", "env": {"1A": "x"}}, "'1A' is not the name of a variable"),
        ({"prompt": "x", "env": {"A": "x\0"}}, "the value of A holds a NUL"),
        ({"prompt": "x", "env": {"HOME": "/tmp"}}, "HOME is set by Tailrun itself"),
        ({"prompt": "x", "env": {"A": "x" * 32_000}}, "env must be at most 32000 bytes"),
        ({"prompt": "x", "timeout_s": 0}, "timeout_s must be greater than 0"),
        ({"prompt": "x", "timeout_s": True}, "timeout_s must be a number"),
        ({"prompt": "x", "max_attempts": 0}, "max_attempts"),
        ({"prompt": "x", "max_attempts": 21}, "max_attempts must be at most 20"),
        ({"prompt": "x", "max_attempts": 1.5}, "max_attempts"),
    ],
)
def test_a_wrong_field_is_named(body: dict[str, object], says: str) -> None:
    """The message names the field and what is allowed."""
    with pytest.raises(Unprocessable, match=says) as caught:
        check(NewRun, body)
    assert caught.value.status == 422


def test_the_limits_themselves_are_allowed() -> None:
    """Nothing is refused that the documentation allows."""
    labels = {f"{n:063}": "v" * 255 for n in range(16)}
    run = check(NewRun, {"prompt": "x" * 100_000, "labels": labels, "timeout_s": 1, "max_attempts": 20})
    assert run.start
    assert run.labels == labels


def test_steps_are_left_to_the_catalogue() -> None:
    """They pass as they were sent; the catalogue has the better words."""
    assert check(NewRun, {"steps": [{"tool": "no"}]}).steps == [{"tool": "no"}]


@pytest.mark.parametrize("user", ["", "../x", ".", "a/b", "a b", "é", "x" * 64, "a\n"])
def test_a_user_id_is_safe_as_a_part_of_a_path(user: str) -> None:
    """Users' files lie below their id."""
    with pytest.raises(Unprocessable, match="user_id must be"):
        check(NewToken, {"user_id": user})


def test_an_action_on_a_run_needs_its_id() -> None:
    """The missing field is named."""
    with pytest.raises(Unprocessable, match="run_id is required"):
        check(ExecuteOn, {"action": "start"})
