"""Finds any of many texts in one line, in a time that grows with the line and with nothing else.

Texts are known by their first characters (their head). Heads are found by an automaton (Aho-Corasick), or
without one by a look at each place; the rest of a text is compared only where its head was found. So a
million characters of texts cost a search for a few thousand.

Most output holds nothing, so the first look is what counts: one pass for heads and marks (what the
masker's own patterns need) together. Only where it finds something is it asked what, and where.

Bounded in every direction: a head that too many texts begin with hides as much as the longest of
them, and a line with too many finds is hidden whole. Nothing is ever shown because there was too much.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from app.stream.secret_values import Form

if TYPE_CHECKING:
    from ahocorasick_rs import AhoCorasick

HAS_AUTOMATON = find_spec("ahocorasick_rs") is not None
"""Without it (it has no wheel for musl) the same is found, more slowly."""

Span = tuple[int, int]

_HEAD = 12
_MOST_ALIKE = 32
_MOST_BYTES = 100_000
"""An automaton is built while nothing else runs: of so much in some 30 ms."""
_SHORT = 200
"""A first look at so few characters saves nothing."""
_SOME_FINDS, _MOST_FINDS = 8, 1000

_BEGUN = re.compile(
    r"(?:\\[abefnrtv0]|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|%[0-9a-fA-F]{2}|\x1b\[[0-9;]{0,12}[A-Za-z]|\s-[A-Za-z])\Z",
)
"""What ends in a letter or digit and is no part of a word: escapes, colours, an option (`-ppassword`)."""
_BEGUN_CHARS = 16


class KnownValues:
    """Texts to be found; immutable. `marks` are looked for beside them, and only named."""

    def __init__(self, forms: Iterable[Form], marks: Sequence[str] = ()) -> None:
        by_head = dict[str, dict[str, bool]]()
        for text, alone in forms:
            alike = by_head.setdefault(text[:_HEAD], {})
            alike[text] = alone and alike.get(text, True)
        self._forms = [
            tuple(sorted(alike.items(), key=lambda form: -len(form[0]))) for alike in by_head.values()
        ]
        self._marks = tuple(marks)
        texts = [*marks, *by_head]
        self._texts = _finder(texts)
        self._longest_text = max(map(len, texts), default=1)

    def look(self, text: str) -> tuple[bool, set[str]]:
        """Say whether one of the texts may be in `text`, of any number of lines; if none, which marks are."""
        if self._texts.missing(text):
            return False, set()
        marks = set[str]()
        for which, _, _ in all_finds(self._texts, text, self._longest_text):
            if which >= len(self._marks):
                return True, marks
            marks.add(self._marks[which])
        return False, marks

    def spans(self, text: str) -> tuple[list[Span], set[str]]:
        """Find where the texts are in a line: start and end, in no order, with overlaps; and the marks.

        A line with too many of them is one span.
        """
        if len(text) > _SHORT and self._texts.missing(text):
            return [], set()
        spans, marks, left = list[Span](), set[str](), min(_MOST_FINDS, _SOME_FINDS + len(text) // 8)
        first_head = len(self._marks)
        for which, start, _ in all_finds(self._texts, text, self._longest_text):
            if which < first_head:
                marks.add(self._marks[which])
                continue
            if left == 0:
                return [(0, len(text))], set()
            left -= 1
            span = self._longest(text, self._forms[which - first_head], start)
            if span is not None:
                spans.append(span)
        return spans, marks

    def _longest(self, text: str, alike: Sequence[tuple[str, bool]], start: int) -> Span | None:
        if len(alike) > _MOST_ALIKE:
            return start, min(start + len(alike[0][0]), len(text))
        for form, alone in alike:
            if text.startswith(form, start):
                end = start + len(form)
                if not alone or _stands_alone(text, start, end):
                    return start, end
        return None


def _finder(texts: Sequence[str]) -> Literals:
    """Return the fastest finder of these texts."""
    if HAS_AUTOMATON and len("".join(texts).encode()) <= _MOST_BYTES:
        return Automaton(texts)
    return Hashed(texts)


def _stands_alone(text: str, start: int, end: int) -> bool:
    if end < len(text) and _goes_on(text[end]) and _goes_on(text[end - 1]):
        return False
    if start == 0 or not (_goes_on(text[start - 1]) and _goes_on(text[start])):
        return True
    before = text[max(0, start - _BEGUN_CHARS) : start]
    return _BEGUN.search(before if start > _BEGUN_CHARS else " " + before) is not None


def _goes_on(char: str) -> bool:
    return char.isascii() and char.isalnum()


# -- how texts are found ----------------------------------------------------------------

Find = tuple[int, int, int]
"""Which of the texts, and where it begins and ends."""

FEW = 60
"""Up to so many are worth a first look that only says whether there is one."""
_SOME = 200
"""Up to so many searches are faster than a look at each place."""
_WINDOW = 16_384
"""Characters that are searched at once: the list of finds is not held for a whole long line."""


class Literals(Protocol):
    """Texts to be found; immutable."""

    def missing(self, text: str) -> bool:
        """Whether `text` certainly holds none of them; cheap, and may be wrong the other way."""
        ...

    def finds(self, text: str) -> Iterable[Find]:
        """Return every place of each of them in a short text, also where they overlap."""
        ...


def all_finds(wanted: Literals, text: str, longest: int) -> Iterable[Find]:
    """Return every place in a text of any length; no text that is looked for is longer than `longest`."""
    return wanted.finds(text) if len(text) <= _WINDOW else _by_window(wanted, text, longest)


def _by_window(wanted: Literals, text: str, longest: int) -> Iterator[Find]:
    for begin in range(0, len(text), _WINDOW):
        for which, start, end in wanted.finds(text[begin : begin + _WINDOW + longest - 1]):
            if start < _WINDOW:
                yield which, begin + start, begin + end


class Hashed:
    """With a look at each place of the text: as fast with a hundred thousand texts as with a hundred."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._which = {wanted: which for which, wanted in enumerate(texts)}
        self._begin = min(map(len, texts), default=1)
        lengths = dict[str, set[int]]()
        for wanted in texts:
            lengths.setdefault(wanted[: self._begin], set()).add(len(wanted))
        self._lengths = {begin: tuple(sorted(found)) for begin, found in lengths.items()}

    def missing(self, text: str) -> bool:
        """Whether none is there; of many texts never sure: it would save nothing."""
        return len(self._which) <= _SOME and not any(wanted in text for wanted in self._which)

    def finds(self, text: str) -> Iterator[Find]:
        """Yield every place, one by one: who has seen enough stops it."""
        lengths, size = self._lengths, self._begin
        for start in [at for at in range(len(text) - size + 1) if text[at : at + size] in lengths]:
            for length in lengths[text[start : start + size]]:
                end = start + length
                which = self._which.get(text[start:end])
                if which is not None and end <= len(text):
                    yield which, start, end


class Automaton:
    """With an Aho-Corasick automaton: whatever the number of texts, one pass."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._few = len(texts) <= FEW
        self._first = _automaton(texts if self._few else [], first=True)
        self._every = _automaton(texts, first=False)

    def missing(self, text: str) -> bool:
        """Whether none is there; the kind of automaton that skips ahead is fast only with few texts."""
        return self._few and not _search(self._first, text, overlapping=False)

    def finds(self, text: str) -> Sequence[Find]:
        """Return every place."""
        return _search(self._every, text, overlapping=True)


def _automaton(texts: Sequence[str], *, first: bool) -> AhoCorasick:
    from ahocorasick_rs import AhoCorasick, Implementation, MatchKind  # noqa: PLC0415 - not on every machine

    kind = MatchKind.LeftmostFirst if first else MatchKind.Standard
    return AhoCorasick(
        texts, matchkind=kind, store_patterns=False, implementation=Implementation.ContiguousNFA
    )


def _search(automaton: AhoCorasick, text: str, *, overlapping: bool) -> Sequence[Find]:
    """Search; a lone surrogate, which no value and no output holds, is as good as a `?`."""
    try:
        return automaton.find_matches_as_indexes(text, overlapping=overlapping)
    except UnicodeEncodeError:
        readable = text.encode("utf-8", "replace").decode()
        return automaton.find_matches_as_indexes(readable, overlapping=overlapping)
