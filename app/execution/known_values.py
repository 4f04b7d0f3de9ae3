"""Finds any of many texts in one line, in a time that grows with the line and with nothing else.

Texts are known by their first characters (their head). One automaton (Aho-Corasick) finds heads, and what
stands behind one is compared only where it was found. So a million characters of texts cost an automaton
of a few thousand, which matters: it is built while nothing else runs.

Most output holds nothing, so the first look is what counts: one pass for heads and marks (what the
masker's own patterns need) together, by the kind of automaton that skips ahead.

Bounded in every direction: a head that too many texts begin with hides as much as the longest of
them, and a line with too many finds is hidden whole. Nothing is ever shown because there was too much.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from ahocorasick_rs import AhoCorasick, Implementation, MatchKind

from app.execution.secret_forms import Form

Span = tuple[int, int]

_HEAD = 12
_FEW = 40
"""Up to so many heads, looking for them and the marks at once is faster than one after the other."""
_MOST_ALIKE = 32
_SOME_FINDS, _MOST_FINDS = 16, 2000
_WINDOW = 16_384
"""Characters that are searched at once for all finds: their list is not held for a whole long line."""

_BEGUN = re.compile(
    r"(?:\\[abefnrtv0]|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|%[0-9a-fA-F]{2}|\x1b\[[0-9;]{0,12}[A-Za-z]|\s-[A-Za-z])\Z",
)
"""What ends in a letter or digit and is no part of a word: escapes, colours, an option (`-ppassword`)."""
_BEGUN_CHARS = 16


class KnownValues:
    """Texts to be found; immutable. `marks` are looked for beside them, and only named.

    No mark may end in what another one begins with.
    """

    def __init__(self, forms: Iterable[Form], marks: Sequence[str] = ()) -> None:
        by_head = dict[str, dict[str, bool]]()
        for text, alone in forms:
            alike = by_head.setdefault(text[:_HEAD], {})
            alike[text] = alone and alike.get(text, True)
        self._by_head = {
            head: tuple(sorted(alike.items(), key=lambda form: -len(form[0])))
            for head, alike in by_head.items()
        }
        self._heads, self._marks = list(by_head), marks
        self._few = len(by_head) <= _FEW
        self._first = _automaton([*marks, *(self._heads if self._few else ())], MatchKind.LeftmostFirst)
        self._automaton = _automaton(self._heads, MatchKind.Standard)

    def look(self, text: str) -> tuple[bool, set[str]]:
        """Say whether one of the texts may be in `text`, which may be many lines, and which marks are."""
        hits = {which for which, _, _ in _search(self._first, text)}
        marks = {self._marks[which] for which in hits if which < len(self._marks)}
        # a mark may hide a head that begins inside of it
        known = bool(self._heads and (hits or not self._few) and _search(self._automaton, text))
        return known, marks

    def spans(self, text: str) -> list[Span]:
        """Find where the texts are in a line: start and end, in no order, with overlaps."""
        spans, most = list[Span](), min(_MOST_FINDS, _SOME_FINDS + len(text) // 8)
        for finds, (head, start) in enumerate(self._finds(text)):
            if finds >= most:
                return [(0, len(text))]
            span = self._longest(text, head, start)
            if span is not None:
                spans.append(span)
        return spans

    def _finds(self, text: str) -> Iterator[tuple[str, int]]:
        """Yield every place of every head."""
        for begin in range(0, len(text), _WINDOW) if self._heads else ():
            window = text[begin : begin + _WINDOW + _HEAD - 1]
            for which, start, _ in _search(self._automaton, window, overlapping=True):
                if start < _WINDOW:
                    yield self._heads[which], begin + start

    def _longest(self, text: str, head: str, start: int) -> Span | None:
        alike = self._by_head[head]
        if len(alike) > _MOST_ALIKE:
            return start, min(start + len(alike[0][0]), len(text))
        for form, alone in alike:
            if text.startswith(form, start):
                end = start + len(form)
                if not alone or _stands_alone(text, start, end):
                    return start, end
        return None


def _automaton(texts: list[str], kind: MatchKind) -> AhoCorasick:
    return AhoCorasick(
        texts, matchkind=kind, store_patterns=False, implementation=Implementation.ContiguousNFA
    )


def _search(automaton: AhoCorasick, text: str, *, overlapping: bool = False) -> list[tuple[int, int, int]]:
    """Search; a lone surrogate, which no value and no output holds, is as good as a `?`."""
    try:
        return automaton.find_matches_as_indexes(text, overlapping=overlapping)
    except UnicodeEncodeError:
        readable = text.encode("utf-8", "replace").decode()
        return automaton.find_matches_as_indexes(readable, overlapping=overlapping)


def _stands_alone(text: str, start: int, end: int) -> bool:
    if end < len(text) and _goes_on(text[end]) and _goes_on(text[end - 1]):
        return False
    if start == 0 or not (_goes_on(text[start - 1]) and _goes_on(text[start])):
        return True
    before = text[max(0, start - _BEGUN_CHARS) : start]
    return _BEGUN.search(before if start > _BEGUN_CHARS else " " + before) is not None


def _goes_on(char: str) -> bool:
    return char.isascii() and char.isalnum()
