"""Finds which of many short texts are in a text, and where, with nothing but Python's own search.

Slower than `app.stream.automaton`, and finds the same: for machines without that library, and for
thousands of texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

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
