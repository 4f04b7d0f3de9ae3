"""Secrets do not come through, in whatever guise and wherever a line was cut."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.execution import masking
from app.execution.masking import LineMasker, Masker
from app.execution.output import LineSplitter
from app.models import Line, Stream

SECRET = "p4ss/w+rd='é\"x"
KEY = "\n".join(
    [
        "-----BEGIN RSA PRIVATE KEY-----",
        *(f"MIIkey{i:02}" * 6 for i in range(5)),
        "-----END RSA PRIVATE KEY-----",
    ],
)
OUT, ERR = Stream.STDOUT, Stream.STDERR


def through(masker: Masker, data: bytes, *, step: int = 1 << 20, limit: int = 1 << 20) -> str:
    """Everything that a program's output becomes, in pieces of `step` bytes and lines of `limit`."""
    splitter, masking = LineSplitter(OUT, max_line_bytes=limit), LineMasker(masker)
    out = list[Line]()
    for at in range(0, len(data), step):
        out += masking.lines(splitter.feed(data[at : at + step], 0.0))
    out += masking.lines(splitter.finish())
    return "".join(line.content if line.split else line.content + "\n" for line in out)


@pytest.mark.parametrize(
    "guise",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        "p4ss%2fw%2brd%3d%27%c3%a9%22x",
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
    ],
)
def test_a_value_is_hidden_in_every_guise(guise: str) -> None:
    assert Masker([SECRET]).text(f"before {guise} after") == "before *** after"


@given(st.binary(max_size=20), st.binary(max_size=20), st.text(min_size=6, max_size=40))
def test_a_value_inside_of_base64_is_hidden_in_every_alignment(
    before: bytes, after: bytes, value: str
) -> None:
    value = "x" + value + "x"
    text = base64.b64encode(before + value.encode() + after).decode()
    shown = Masker([value]).text(text)
    assert "***" in shown
    for part in shown.split("***"):
        assert len(part) <= (max(len(before), len(after)) + 3) * 4 / 3 + 4


def test_a_long_value_is_hidden_as_base64_wraps_it() -> None:
    value = "0123456789abcdef" * 20
    wrapped = base64.encodebytes(value.encode())
    assert set(through(Masker([value]), wrapped).split()) == {"***"}


def test_short_values_are_left_alone() -> None:
    assert Masker(["abc", "", "  a "]).text("abc  a  d") == "abc  a  d"


def test_the_longer_of_two_values_goes_first() -> None:
    assert Masker(["secret", "secret-and-more"]).text("secret-and-more secret") == "*** ***"


def test_a_value_of_several_lines_is_hidden_line_by_line() -> None:
    value = '{\n  "user": "joe",\n  "pass": "hunter22"\n}'
    masker = Masker([value])
    assert through(masker, value.encode()) == "{\n  ***\n  ***\n}\n"
    assert masker.text("creds " + json.dumps(value)) == 'creds "***"'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abcdef0123456789.xyz-_ ok", "Authorization: Bearer *** ok"),
        ("authorization: bearer abcdef0123456789", "authorization: bearer ***"),
        ("bearer tokens are fine", "bearer tokens are fine"),
        ("id AKIAIOSFODNN7EXAMPLE.", "id ***."),
        ("XAKIAIOSFODNN7EXAMPLE", "XAKIAIOSFODNN7EXAMPLE"),
        ("ghp_" + "a1B2" * 9, "***"),
        ("github_pat_" + "a1_B2" * 9, "***"),
        (KEY.replace("\n", "\\n") + " after", "*** after"),
    ],
)
def test_what_looks_like_a_secret_is_hidden_without_being_known(text: str, shown: str) -> None:
    assert Masker().text(text) == shown


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_private_key_is_hidden_over_all_its_lines(step: int) -> None:
    shown = through(Masker(), f"before\n  {KEY} tail\nafter\n".encode(), step=step)
    assert shown == "before\n  ***\n" + "***\n" * 5 + "*** tail\nafter\n"


def test_a_key_in_one_stream_hides_nothing_in_the_other() -> None:
    masking = LineMasker(Masker())
    lines = [Line(OUT, "-----BEGIN PRIVATE KEY-----"), Line(ERR, "shown"), Line(OUT, "hidden")]
    assert [line.content for line in masking.lines(lines)] == ["***", "shown", "***"]


def test_a_key_without_an_end_stops_hiding_at_last() -> None:
    shown = through(Masker(), b"-----BEGIN PRIVATE KEY-----\n" + b"x\n" * 2000)
    assert shown.endswith("x\n" * 900)


def test_patterns_of_the_user_hide_their_match_or_first_group() -> None:
    masker = Masker(patterns=[r"password=(\S+)", r"\bcard \d{4}\b"])
    assert masker.text("password=abc card 1234 card 12345") == "password=*** *** card 12345"


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="LOG_MASK_PATTERNS"):
        Masker(patterns=["("])


@given(st.integers(0, 12_000), st.integers(1, 3000), st.sampled_from([5000, 8192]))
def test_a_value_across_the_cut_of_an_over_long_line_is_hidden(at: int, step: int, limit: int) -> None:
    data = b"." * at + SECRET.encode() + b"." * (12_000 - at)
    shown = through(Masker([SECRET]), data, step=step, limit=limit)
    assert shown == "." * at + "***" + "." * (12_000 - at) + "\n"


@given(st.integers(0, 9000))
def test_a_token_across_the_cut_of_an_over_long_line_is_hidden(at: int) -> None:
    data = b" " * at + b"Bearer " + b"t0k3n" * 400 + b" " + b"." * 9000
    assert "t0k3n" not in through(Masker(), data, limit=5000)


def test_a_key_in_an_over_long_line_is_hidden_whole() -> None:
    data = b"x" * 3000 + b"-----BEGIN PRIVATE KEY-----" + b"k3y!" * 50_000
    assert "k3y!" not in through(Masker(), data, limit=5000)


def test_batches_without_secrets_are_passed_on_as_they_are() -> None:
    lines = [Line(OUT, f"line {i}") for i in range(100)]
    assert LineMasker(Masker([SECRET])).lines(lines) is lines


def test_progress_updates_and_levels_are_kept() -> None:
    line = Line(OUT, f"{SECRET} 10%", cr=True)
    assert LineMasker(Masker([SECRET])).lines([line]) == [Line(OUT, "*** 10%", cr=True)]


def test_no_literal_of_a_pattern_is_left_out_of_the_first_look() -> None:
    """What a pattern needs to match is looked for before any line is; each literal, with what finds it."""
    by_pattern = {literal for literals, _ in masking._BUILT_IN for literal in literals}
    assert by_pattern == {literal for _, literals in masking._BUILT_IN_BY for literal in literals}
    assert all(rare in literal for rare, literals in masking._BUILT_IN_BY for literal in literals)
    assert all(Masker().suspects(f"a{literal}b") for literal in by_pattern)
