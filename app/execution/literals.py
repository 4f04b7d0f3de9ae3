"""Finds which of many short texts are in a text, and where: with an automaton where there is one.

`ahocorasick_rs` has no wheel for musl, so without it this does with Python's own search, which is slower
and finds the same. It is also what thousands of texts are looked for with: an automaton of them is
built while nothing else runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

try:
    import ahocorasick_rs
except ImportError:  # no wheel for this machine
    ahocorasick_rs = None

Find = tuple[int, int, int]
"""Which of the texts, and where it begins and ends."""

FEW = 60
"""Up to so many are worth a first look that only says whether there is one."""
MOST_IN_AUTOMATON = 4000
"""So many are built in some 20 ms at most."""
_WINDOW = 16_384
"""Characters that are searched at once: the list of finds is not held for a whole long line."""


class Literals(Protocol):
    """Texts to be found; immutable."""

    def missing(self, text: str) -> bool:
        """Whether `text` certainly holds none of them; cheap, and may be wrong the other way."""
        ...

    def finds(self, text: str) -> Sequence[Find]:
        """Return every place of each of them in a short text, also where they overlap."""
        ...


def literals(texts: Sequence[str]) -> Literals:
    """Return the fastest finder of these texts, none of which is empty."""
    if ahocorasick_rs is not None and len(texts) <= MOST_IN_AUTOMATON:
        return Automaton(texts)
    return Searched(texts) if len(texts) <= FEW else Hashed(texts)


def all_finds(wanted: Literals, text: str, longest: int) -> Iterable[Find]:
    """Return every place in a text of any length; no text that is looked for is longer than `longest`."""
    return wanted.finds(text) if len(text) <= _WINDOW else _by_window(wanted, text, longest)


def _by_window(wanted: Literals, text: str, longest: int) -> Iterator[Find]:
    for begin in range(0, len(text), _WINDOW):
        for which, start, end in wanted.finds(text[begin : begin + _WINDOW + longest - 1]):
            if start < _WINDOW:
                yield which, begin + start, begin + end


class Automaton:
    """With an Aho-Corasick automaton: whatever the number of texts, one pass."""

    def __init__(self, texts: Sequence[str]) -> None:
        kinds, self._few = ahocorasick_rs.MatchKind, len(texts) <= FEW
        self._first = _automaton(texts if self._few else [], kinds.LeftmostFirst)
        self._every = _automaton(texts, kinds.Standard)

    def missing(self, text: str) -> bool:
        """Whether none is there; the kind of automaton that skips ahead is fast only with few texts."""
        return self._few and not _search(self._first, text, overlapping=False)

    def finds(self, text: str) -> Sequence[Find]:
        """Return every place."""
        return _search(self._every, text, overlapping=True)


class Searched:
    """With a search for each of a few texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)

    def missing(self, text: str) -> bool:
        """Whether none is there."""
        return not any(wanted in text for wanted in self._texts)

    def finds(self, text: str) -> Sequence[Find]:
        """Return every place."""
        finds = list[Find]()
        for which, wanted in enumerate(self._texts):
            start = text.find(wanted)
            while start >= 0:
                finds.append((which, start, start + len(wanted)))
                start = text.find(wanted, start + 1)
        return finds


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
        """Never sure: a first look would cost as much as the second."""
        return False

    def finds(self, text: str) -> Sequence[Find]:
        """Return every place."""
        finds, lengths, size = list[Find](), self._lengths, self._begin
        for start in [at for at in range(len(text) - size + 1) if text[at : at + size] in lengths]:
            for length in lengths[text[start : start + size]]:
                which = self._which.get(text[start : start + length])
                if which is not None:
                    finds.append((which, start, start + length))
        return finds


def _automaton(texts: Sequence[str], kind: ahocorasick_rs.MatchKind) -> ahocorasick_rs.AhoCorasick:
    implementation = ahocorasick_rs.Implementation.ContiguousNFA
    return ahocorasick_rs.AhoCorasick(
        texts, matchkind=kind, store_patterns=False, implementation=implementation
    )


def _search(automaton: ahocorasick_rs.AhoCorasick, text: str, *, overlapping: bool) -> Sequence[Find]:
    """Search; a lone surrogate, which no value and no output holds, is as good as a `?`."""
    try:
        return automaton.find_matches_as_indexes(text, overlapping=overlapping)
    except UnicodeEncodeError:
        readable = text.encode("utf-8", "replace").decode()
        return automaton.find_matches_as_indexes(readable, overlapping=overlapping)
