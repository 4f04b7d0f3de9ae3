"""Whatever the secrets, the text around them and the cuts: nothing leaks, and time grows with the length."""

from __future__ import annotations

import base64
import itertools
import json
import random
import string
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.stream.masking import LineMasker, Masker
from tailrun.process.lines import Line, Stream
from tailrun.process.output import LineSplitter

CODINGS: tuple[Callable[[str], str], ...] = (
    str,
    lambda value: json.dumps(value)[1:-1],
    lambda value: json.dumps(value, ensure_ascii=False)[1:-1],
    quote,
    lambda value: quote(value, safe=""),
    quote_plus,
)
ALPHABET = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs"))
SECRETS = st.lists(
    st.text(ALPHABET, min_size=9, max_size=60).map(lambda text: f"{text[:4]}-1/{text[4:]}"), min_size=1
)
AROUND = st.text("ab1. =:", max_size=30)


def through(masker: Masker, data: bytes, steps: list[int], limit: int) -> str:
    """Everything that output becomes that comes in pieces of these sizes."""
    splitter, masking, at = LineSplitter(Stream.STDOUT, max_line_bytes=limit), LineMasker(masker), 0
    out = list[Line]()
    for step in itertools.cycle(steps):
        if at >= len(data):
            break
        out += masking.lines(splitter.feed(data[at : at + step], 0.0))
        at += step
    out += masking.lines(splitter.finish())
    return "".join(line.content if line.split else line.content + "\n" for line in out)


@given(
    SECRETS,
    st.lists(st.tuples(AROUND, st.integers(0), st.sampled_from(CODINGS)), min_size=1, max_size=8),
    st.lists(st.integers(1, 200), min_size=1, max_size=5),
    st.sampled_from([64, 5000, 1 << 20]),
)
def test_no_secret_leaks_in_any_documented_coding_however_it_is_cut(
    secrets: list[str],
    printed: list[tuple[str, int, Callable[[str], str]]],
    steps: list[int],
    limit: int,
) -> None:
    text = "".join(f"{around}{code(secrets[which % len(secrets)])}\n" for around, which, code in printed)
    shown = through(Masker(secrets), text.encode(), steps, limit)
    for secret in secrets:
        assert not any(code(secret) in shown for code in CODINGS)


@given(
    st.text(ALPHABET, min_size=9, max_size=60),
    st.binary(max_size=9),
    st.binary(max_size=9),
    st.lists(st.integers(1, 50), min_size=1, max_size=5),
)
def test_no_secret_leaks_in_base64_wherever_it_lies(
    secret: str, before: bytes, after: bytes, steps: list[int]
) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(before + secret.encode() + after)
        shown = through(Masker([secret]), text, steps, 1 << 20)
        assert "***" in shown
        assert len(shown) - 4 <= 4 * (len(before) + len(after)) / 3 + 12


@given(st.lists(st.text(ALPHABET, min_size=8, max_size=30), min_size=2, max_size=6))
def test_a_secret_of_several_lines_leaks_none_of_them(lines: list[str]) -> None:
    lines = [f"{line}/-x1" for line in lines]
    secret = "\n".join(lines)
    masker = Masker([secret])
    for text in (secret, " ".join(lines), json.dumps(secret), quote(secret)):
        shown = masker.text(f"x {text} y")
        assert not any(line in shown for line in lines)


@given(st.lists(st.text("ab1-", min_size=4, max_size=6)), st.text("ab1-", max_size=200))
def test_what_is_left_of_a_line_holds_no_secret_that_overlaps_another(secrets: list[str], text: str) -> None:
    shown = Masker([f"{secret}--long" for secret in secrets]).text(f"{text}--long{text}--long")
    assert not any(f"{secret}--long" in shown for secret in secrets)


def seconds(work: Callable[[], object]) -> float:
    """The CPU time that it takes, of the best of three; what is too short to measure counts alike."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return max(best, 0.002)


def short_words(size: int) -> str:
    words = map("".join, itertools.product("qxzjkvwy0123456789", repeat=4))
    return "\n".join(itertools.islice(words, size // 5))


def random_text(size: int) -> str:
    return "".join(random.Random(size).choices(string.ascii_letters + "/+=é", k=size))


def alike(size: int) -> str:
    return "\n".join(f"{'a1' * 8}{n}" for n in range(size // 20))


@pytest.mark.parametrize("secret", [short_words, random_text, alike])
def test_what_is_hidden_may_be_large(secret: Callable[[int], str]) -> None:
    """Building grows with the size of a secret, searching hardly does."""
    sizes = (2_000, 8_000, 32_000)
    built = [seconds(lambda size=size: Masker([secret(size)])) for size in sizes]
    assert all(after < 12 * before for before, after in itertools.pairwise(built)), built
    maskers = [Masker([secret(size)]) for size in sizes]
    text = "q" * 100_000 + secret(2_000)[:4]
    searched = [seconds(lambda masker=masker: masker.text(text)) for masker in maskers]
    assert searched[-1] < 100 * searched[0], searched  # without an automaton, in place of thousands of times


TEXTS = (
    "q",
    "qqq0",
    "qqq0 ",
    "a1",
    "-----BEGIN PRIVATE KEY-----",
    "eyJ",
    "://a:",
    "bearer ",
    "ghp_",
    "-----END ",
    "tr_a",
)


@pytest.mark.parametrize("piece", TEXTS)
@pytest.mark.parametrize(("line", "split"), [(100, False), (1 << 20, False), (4096, True)])
def test_time_grows_with_the_length_of_output(piece: str, line: int, split: bool) -> None:
    masker = Masker([short_words(8_000), "\n".join("a1" * n for n in range(2, 100))])

    def search(size: int) -> None:
        text = piece * (size // len(piece))
        lines = [Line(Stream.STDOUT, text[at : at + line], split=split) for at in range(0, size, line)]
        LineMasker(masker).lines(lines)

    times = [seconds(lambda size=size: search(size)) for size in (10_000, 40_000, 160_000)]
    assert all(after < 12 * before for before, after in itertools.pairwise(times)), times
