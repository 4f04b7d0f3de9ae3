"""Each way of looking for many texts finds the same, and none builds for long."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.stream import known_values
from app.stream.known_values import Automaton, Hashed, KnownValues, Literals, all_finds
from app.stream.secret_values import Form

WAYS: list[Callable[[Sequence[str]], Literals]] = [Automaton, Hashed]
WANTED = st.lists(st.text("ab\u00e9\U0001f4a5", min_size=1, max_size=5), unique=True)


def places(wanted: Sequence[str], text: str) -> list[tuple[int, int, int]]:
    """What there is to find, by the plainest way."""
    return [
        (which, start, start + len(one))
        for which, one in enumerate(wanted)
        for start in range(len(text))
        if text.startswith(one, start)
    ]


@pytest.mark.parametrize("way", WAYS)
@given(wanted=WANTED, text=st.text("ab\u00e9\U0001f4a5 \n\ud800", max_size=40))
def test_all_places_are_found(way: Callable[[Sequence[str]], Literals], wanted: list[str], text: str) -> None:
    finder, expected = way(wanted), places(wanted, text)
    assert sorted(finder.finds(text)) == expected
    assert not (finder.missing(text) and expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", [0, 16_380, 16_384, 32_766, 40_000])
def test_a_place_across_two_windows_is_found_once(way: Callable[[Sequence[str]], Literals], at: int) -> None:
    text = "." * at + "abcdef" + "." * 20_000
    assert list(all_finds(way(["abcdef", "ef"]), text, 6)) == [(0, at, at + 6), (1, at + 4, at + 6)]


def test_an_automaton_is_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is built while nothing else runs, whatever a run's variables hold."""
    built = list[int]()

    def automaton(texts: Sequence[str]) -> Literals:
        built.append(len(texts))
        return Automaton(texts)

    monkeypatch.setattr(known_values, "Automaton", automaton)
    for count in (10, 3000, 50_000):
        values = [f"{n:x}-{n}" for n in range(count)]
        known = KnownValues(map(Form, values), ("://",))
        assert known.look(f"x {values[-1]} y")[0]
        assert known.spans(f"x {values[-1]} y")[0][0] == (2, 2 + len(values[-1]))
        assert known.look("x:// y") == (False, {"://"})
    assert built == [11, 3001]


def test_without_the_library_masking_does_the_same() -> None:
    program = """
import sys
sys.modules["ahocorasick_rs"] = None
from app.stream.known_values import HAS_AUTOMATON
from app.stream.masking import Masker
print(Masker(["hunter22-x"]).text("is hunter22-x or AKIAIOSFODNN7EXAMPLE."))
print(HAS_AUTOMATON)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "is *** or ***.\nFalse\n"
