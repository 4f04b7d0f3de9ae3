"""Progress bars in history, and text without terminal sequences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.events import Entry, Event, EventType
from app.core.log_filter import EVERYTHING, LogFilter
from app.stream.formats import (
    Collapsed,
    Format,
    bare_messages,
    collapse,
    collapse_entries,
    encoding,
    messages,
    replay_encoding,
    stripped,
)
from tailrun.ansi import strip_ansi
from tailrun.process.lines import Level, Stream


def event(seq: int, content: str, *, cr: bool = False, step: str = "s1", attempt: int = 1) -> Event:
    data = {"cr": True} if cr else {}
    return Event(seq, EventType.LOG, 1, "r", attempt, Level.INFO, Stream.STDOUT, step, content, data)


def entries(*events: Event) -> list[Entry]:
    return [(each.seq, each.encode()) for each in events]


BAR = [event(n, f"{n * 10} %", cr=True) for n in range(1, 10)]
DONE = event(10, "100 %")
STEP = Event(11, EventType.STEP, 1, "r", 1, step="s1", data={"status": "succeeded", "cr": True})


def test_only_the_last_state_of_a_line_is_left() -> None:
    assert collapse([*BAR, DONE, STEP]) == ([DONE, STEP], None)
    assert collapse(BAR) == ([BAR[-1]], 9)


def test_bars_of_two_steps_or_attempts_do_not_replace_each_other() -> None:
    events = [event(1, "a", cr=True), event(2, "b", cr=True, step="s2"), event(3, "c", cr=True, attempt=2)]
    assert collapse(events) == (events, 1)
    assert collapse([*events, event(4, "a done")]) == ([*events[1:], event(4, "a done")], 2)


def test_what_a_program_prints_is_no_mark() -> None:
    shown = [event(1, '"cr":true'), event(2, '{"cr":true}'), event(3, "x")]
    assert collapse_entries(entries(*shown)) == entries(*shown)


specs = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["s1", "s2", "s3"]), st.booleans()), min_size=1, max_size=60
)


@given(specs, st.lists(st.integers(1, 15)))
def test_payloads_in_any_pieces_are_collapsed_as_a_whole(
    given_specs: list[tuple[bool, str, bool]], cuts: list[int]
) -> None:
    """Each line once, in order, without loss; nothing is held back at the end."""
    events = [
        event(seq, str(seq), cr=cr, step=step) if line else Event(seq, EventType.STATUS, 1, "r", 1)
        for seq, (cr, step, line) in enumerate(given_specs, 1)
    ]
    encode = Collapsed(list, lambda some: some)
    left, found = entries(*events), []
    for cut in [*cuts, 10_000]:
        if left:
            found += encode(left[:cut])
        left = left[cut:]
    found += encode([])
    assert found == list(collapse_entries(entries(*events)))
    assert encode([]) == []


def test_what_is_held_back_is_bounded() -> None:
    """A bar that nothing replaces does not keep a long log in memory."""
    encode = Collapsed(len, lambda some: some)
    encode(entries(BAR[0]))
    given_out = [
        encode(entries(*(event(n, "x", step="s2") for n in range(k, k + 500)))) for k in range(2, 4000, 500)
    ]
    assert sum(given_out) > 2000


def test_text_live_has_updates_as_they_come_and_history_the_last() -> None:
    live = encoding(Format.TEXT, collapse=True)
    assert b"".join(live([entry]) for entry in entries(*BAR[:2])) == b"10 %\n20 %\n"
    assert live(entries(*BAR)) == b"90 %\n"
    past = replay_encoding(Format.TEXT, LogFilter(stream=Stream.STDOUT), strip=False, collapse=True)
    assert (
        past(entries(*BAR[:5])) + past(entries(*BAR[5:])) + past(entries(DONE, STEP)) + past([]) == b"100 %\n"
    )
    assert bare_messages(entries(*BAR)) == ["90 %"]
    every = replay_encoding(Format.NDJSON, EVERYTHING, strip=False, collapse=False)
    assert len(every(entries(*BAR)).splitlines()) == 9


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\x1b[1;31mred\x1b[0m and \x1b[38:2::1:2:3mtrue\x1b[m", "red and true"),
        ("\x1b]0;title\x07x\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "xlink"),
        ("\x9b31mred\x9d0;t\x9cx", "redx"),
        ("\x1b[2K\x1b[1A\x1b7\x1b(Bup", "up"),
        ("\x1bP1$r0m\x1b\\x", "x"),
        ("cut \x1b[38;5", "cut "),
        ("cut \x1b", "cut "),
        ("\x1b]no end of it", "no end of it"),
        ("[31m, 日本 ü", "[31m, 日本 ü"),
    ],
)
def test_terminal_sequences_are_taken_out(text: str, plain: str) -> None:
    assert strip_ansi(text) == plain
    given_entries = entries(event(1, text), STEP)
    shown = encoding(Format.NDJSON, strip=True)(given_entries)
    assert shown == encoding(Format.NDJSON)(entries(event(1, plain), STEP))
    assert stripped(bare_messages)(given_entries) == [plain]
    assert stripped(messages)(given_entries)[0] == event(1, plain).encode().decode()


@given(st.text())
def test_nothing_is_left_that_begins_a_sequence(text: str) -> None:
    plain = strip_ansi(f"a{text}")
    assert "\x1b" not in plain
    assert "\x9b" not in plain
