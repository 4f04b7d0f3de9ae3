"""Finds which of many short texts are in a text, and where, in one pass (Aho-Corasick).

The library behind it has no wheel for musl, so this module may be missing: importing it fails then.
"""

from __future__ import annotations

from collections.abc import Sequence

from ahocorasick_rs import AhoCorasick, Implementation, MatchKind

from app.stream.literals import FEW, Find


class Automaton:
    """With an Aho-Corasick automaton: whatever the number of texts, one pass."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._few = len(texts) <= FEW
        self._first = _automaton(texts if self._few else [], MatchKind.LeftmostFirst)
        self._every = _automaton(texts, MatchKind.Standard)

    def missing(self, text: str) -> bool:
        """Whether none is there; the kind of automaton that skips ahead is fast only with few texts."""
        return self._few and not _search(self._first, text, overlapping=False)

    def finds(self, text: str) -> Sequence[Find]:
        """Return every place."""
        return _search(self._every, text, overlapping=True)


def _automaton(texts: Sequence[str], kind: MatchKind) -> AhoCorasick:
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
