"""Secrets do not come through, in whatever guise and wherever a line was cut."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.stream import known_values
from app.stream.masking import LineMasker, Masker
from tailrun.process.lines import Line, Stream
from tailrun.process.output import LineSplitter

SECRET = "p4ss/w+rd='é\"x"
KEY = "\n".join(
    [
        "-----BEGIN RSA PRIVATE KEY-----",
        *(f"MIIkey{i:02}" * 6 for i in range(5)),
        "-----END RSA PRIVATE KEY-----",
    ],
)
OUT, ERR = Stream.STDOUT, Stream.STDERR


@pytest.fixture(scope="module", params=["automaton", "no automaton"], autouse=True)
def _finder(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test here twice: some machines have no automaton."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "no automaton":
            patch.setattr(known_values, "HAS_AUTOMATON", False)
        yield


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
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET)[1:-1].replace("00e9", "00E9"),
        json.dumps(SECRET)[1:-1].replace("/", "\\/"),
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


@pytest.mark.parametrize(
    ("value", "text", "shown"),
    [
        ("a1b2c3", "a1b2c3 fa1b2c30 xa1b2c3 a1b2c3x", "*** fa1b2c30 xa1b2c3 a1b2c3x"),
        ("123456789012", "id 91234567890120, pin 123456789012.", "id 91234567890120, pin ***."),
        ("correcthorse", "correcthorses (correcthorse)", "correcthorses (***)"),
        ("hunter2", r"pw:\nhunter2 a%20hunter2 \u0022hunter2", r"pw:\n*** a%20*** \u0022***"),
        (
            "hunter2",
            "\x1b[31mhunter2\x1b[0m mysql -phunter2 a_hunter2=",
            "\x1b[31m***\x1b[0m mysql -p*** a_***=",
        ),
        ("hunter2", "密码hunter2是", "密码***是"),
        ("zq9-s3cr3t-val", "xzq9-s3cr3t-valx", "x***x"),
    ],
)
def test_short_values_and_words_are_hidden_only_where_they_stand_alone(
    value: str, text: str, shown: str
) -> None:
    assert Masker([value]).text(text) == shown


def test_values_that_overlap_are_hidden_as_one() -> None:
    masker = Masker(["token=abcd", "abcd-efgh-secret", "secret-and-more"])
    assert masker.text("a token=abcd-efgh-secret-and-more b") == "a *** b"


def test_records_are_masked_at_any_depth_but_for_our_own_words() -> None:
    record = {"status": "hunter22", "code": 3, "error": {"message": "is hunter22", "list": ["hunter22"]}}
    shown = {"status": "hunter22", "code": 3, "error": {"message": "is ***", "list": ["***"]}}
    assert Masker(["hunter22"]).record(record) == shown


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
        ("token tr_" + "a1B_" * 10 + "xyz.", "token ***."),
        ("attr_" + "a1B_" * 10 + "xyz", "attr_" + "a1B_" * 10 + "xyz"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl;", "jwt ***;"),
        (
            "see postgres://joe:pa55-w@db/x and http://a:80/b@c",
            "see postgres://joe:***@db/x and http://a:80/b@c",
        ),
        ("Authorization: Basic am9lOnBhc3N3b3Jk", "Authorization: Basic ***"),
        ("GET /b?X-Amz-Signature=" + "0a" * 32 + "&x=1", "GET /b?X-Amz-Signature=***&x=1"),
        ("Tailrun-Staging-Token: 1764489600." + "0a" * 32, "Tailrun-Staging-Token: ***"),
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


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        ("https://joe:abcdefgh", "https://joe:other-pass@db", "https://joe:***@db"),
        ("xeyJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "***"),
        ("://a:bcdef@x.y/z", "http://a:bcdef@other", "http://a:***@other"),
    ],
)
def test_what_begins_like_a_known_secret_hides_nothing_that_looks_like_one(
    secret: str, text: str, shown: str
) -> None:
    assert Masker([secret]).text(text) == shown


def test_a_line_with_too_many_finds_is_hidden_whole() -> None:
    masker = Masker(["a1" * n for n in range(3, 30)])
    assert masker.text("a1" * 30_000 + "!") == "***"
    assert masker.text("see a1a1a1!") == "see ***!"
