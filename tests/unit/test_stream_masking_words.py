"""A model's words go out while they come, and no secret does, wherever the pieces are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.stream.masking import LineMasker, Masker
from tailrun.process.lines import Line, Stream

SECRETS = ["hunter2-of-the-run", "a pass phrase", "geheim–秘密の言葉です"]
MASKER = Masker(SECRETS)
SHOWN = [
    *SECRETS,
    "Bearer abcdefghijklmnop0123",
    "Authorization: Basic dXNlcjpwYXNz",
    "-----BEGIN RSA PRIVATE KEY-----MIIEabc",
    "plain",
    "words",
    "中文字",
    "(see https://user:passw0rd@host.example/x)",
]


def pieces(text: str, steps: list[int], stream: Stream = Stream.MODEL) -> list[str]:
    """Send one line in pieces; return what goes out for each."""
    masker, sent, at = LineMasker(MASKER), list[str](), 0
    for step in steps:
        if at < len(text):
            sent += [line.content for line in masker.lines([Line(stream, text[at : at + step], split=True)])]
            at += step
    return sent + [line.content for line in masker.lines([Line(stream, text[at:])])]


@given(st.lists(st.sampled_from(SHOWN), max_size=8), st.lists(st.integers(1, 40), max_size=60))
def test_the_pieces_are_together_what_the_whole_line_would_be(words: list[str], steps: list[int]) -> None:
    text = " ".join(words)
    assert "".join(pieces(text, steps)) == MASKER.text(text)


def test_words_do_not_wait_for_the_end_of_their_line() -> None:
    masker = Masker(["hunter2-of-the-run"])
    lines = LineMasker(masker)
    sent = ""
    for word in ["one", "two", "three", "four", "five", ""][:-1]:
        [line] = lines.lines([Line(Stream.MODEL, f"{word} ", split=True)])
        sent += line.content
        assert sent.endswith(f"{word} ")


@pytest.mark.parametrize("stream", [Stream.STDOUT, Stream.STDERR])
def test_pieces_of_a_programs_line_are_held_back_as_before(stream: Stream) -> None:
    assert pieces("one two three", [4], stream)[0] == ""


def test_with_patterns_of_the_operators_a_line_of_words_waits_for_its_end() -> None:
    lines = LineMasker(Masker([], [r"order \d+ of \w+"]))
    first = lines.lines([Line(Stream.MODEL, "It is order 12 ", split=True)])
    last = lines.lines([Line(Stream.MODEL, "of ann.")])
    assert [line.content for line in (*first, *last)] == ["", "It is ***."]
