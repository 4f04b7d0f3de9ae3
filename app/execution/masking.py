"""Keeps secrets out of lines: known values in every usual guise, and what looks like a secret.

A value is found as it stands, in base64 (whatever stood before it, so in all three alignments,
and as `base64` wraps it), URL-encoded and as a JSON string; a value of several lines is found line
by line, since that is how it is printed. Values, and lines of values, of fewer than four
characters are left alone: hiding them would hide everything.

Output without secrets must stay cheap: a whole batch is searched for the few literals that a
match needs before any line is looked at.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote, quote_plus

import orjson

from app.models import Line, Stream

MASK = "***"
MIN_CHARS = 4
_WRAPS = (64, 76)
_HOLD_CHARS = 4096
"""How much of an over-long line's piece waits for the next: a secret may lie across the cut."""
_LONGEST_CHARS = 64 * 1024
"""What is longer in one line is no secret that can be kept back as a whole."""
_KEY_LINES = 1000
"""A private key that never ends stops hiding lines after so many."""

_KEY = r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
_KEY_END = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")
_OPEN_KEY = re.compile(rf"{_KEY}(?!.*{_KEY_END.pattern})")
_BUILT_IN: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    (("earer ", "EARER "), re.compile(r"(?i:\bbearer) +([\w.~+/=-]{16,4096})", re.ASCII)),
    (("AKIA", "ASIA"), re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])")),
    (
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_\w{20,255}", re.ASCII),
    ),
    (("PRIVATE KEY",), re.compile(rf"{_KEY}.*?(?:{_KEY_END.pattern}|$)")),
)
_BUILT_IN_BY: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((literal, (literal,)) for literal in ("earer ", "EARER ", "github_pat_", "PRIVATE KEY")),
    ("IA", ("AKIA", "ASIA")),
    ("gh", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
)
"""The same literals by something rare that they share: half the searches, for most output has none."""


class Masker:
    """What is to be hidden; immutable, shared by all runs that hide the same.

    `patterns` are regular expressions of the user's; where one has a group, the first group is
    hidden instead of the whole match.

    Raises:
        ValueError: a pattern is not a regular expression.
    """

    def __init__(self, values: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        found = {form for value in values for form in _forms(value)}
        self._forms = tuple(sorted(found, key=len, reverse=True))
        self._values = re.compile("|".join(map(re.escape, self._forms))) if found else None
        self._patterns = tuple(map(_compile, patterns))

    def text(self, text: str) -> str:
        """Return `text`, of one line or of several, with `***` in place of every secret."""
        if not self.suspects(text):
            return text
        if "\n" not in text:
            return masked(text, self.spans(text))
        lines = LineMasker(self).lines([Line(Stream.SYSTEM, line) for line in text.split("\n")])
        return "\n".join(line.content for line in lines)

    def suspects(self, text: str) -> bool:
        """Whether a line or a batch of lines is worth a closer look; cheap."""
        if self._patterns or any(form in text for form in self._forms):
            return True
        return any(rare in text and any(map(text.__contains__, literals)) for rare, literals in _BUILT_IN_BY)

    def spans(self, text: str, *, whole: bool = False) -> list[tuple[int, int]]:
        """Find every secret in one line: start and end, in order, without overlaps.

        `whole`: with what it is known by (the `Bearer` before a token), which is not hidden.
        """
        found = [match.span() for match in self._values.finditer(text)] if self._values else []
        for literals, pattern in _BUILT_IN:
            if any(literal in text for literal in literals):
                found += _matches(pattern, text, whole=whole)
        for pattern in self._patterns:
            found += _matches(pattern, text, whole=whole)
        return list(_merged(sorted(found)))


class LineMasker:
    """Masks the lines of one program, whose secrets may go on in the next line or piece."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._key_lines: dict[Stream, int] = {}
        """Streams that are inside of a private key: how many of its lines are hidden so far."""
        self._held: dict[Stream, str] = {}
        """Streams that are inside of an over-long line: the end of its last piece, not masked yet."""

    def lines(self, lines: Sequence[Line]) -> Sequence[Line]:
        """Return the lines, in their order, without secrets."""
        quiet = not self._key_lines and not self._held and not any(line.split for line in lines)
        if quiet and not self._masker.suspects("\n".join([line.content for line in lines])):
            return lines
        return [self._line(line) for line in lines]

    def _line(self, line: Line) -> Line:
        text = self._held.pop(line.stream, "") + line.content
        if line.stream in self._key_lines:
            text = self._inside_key(text, line.stream)
        spans = self._masker.spans(text) if self._masker.suspects(text) else []
        cut = len(text)
        if line.split and line.stream not in self._key_lines:
            cut = _cut(text, self._masker.spans(text, whole=True))
        if cut < len(text):
            text, self._held[line.stream] = text[:cut], text[cut:]
            spans = [span for span in spans if span[1] <= cut]
        elif spans and _OPEN_KEY.search(text):
            self._key_lines[line.stream] = 0
        if text is line.content and not spans:
            return line
        return Line(line.stream, masked(text, spans), line.level, cr=line.cr, split=line.split, src=line.src)

    def _inside_key(self, text: str, stream: Stream) -> str:
        """Hide a line of a private key, to the key's end."""
        end = _KEY_END.search(text)
        self._key_lines[stream] += 1
        if end or self._key_lines[stream] >= _KEY_LINES:
            del self._key_lines[stream]
        return MASK + text[end.end() :] if end else MASK


def masked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return `text` with `***` in place of each span."""
    out, at = list[str](), 0
    for start, end in spans:
        out += (text[at:start], MASK)
        at = end
    return "".join((*out, text[at:]))


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> int:
    """Where a piece may be cut: enough stays back to see a secret whole, and none is cut in two."""
    cut = max(0, len(text) - _HOLD_CHARS)
    for start, end in spans:
        if start < cut < end:
            return start if len(text) - start <= _LONGEST_CHARS else len(text)
    return cut


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"LOG_MASK_PATTERNS: {pattern!r} is not a regular expression: {error}") from None


def _matches(pattern: re.Pattern[str], text: str, *, whole: bool) -> list[tuple[int, int]]:
    group = 1 if pattern.groups and not whole else 0
    return [span for match in pattern.finditer(text) if (span := match.span(group))[0] < span[1]]


def _merged(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    at, to = -1, -1
    for start, end in spans:
        if start > to:
            if to > at:
                yield at, to
            at, to = start, end
        else:
            to = max(to, end)
    if to > at:
        yield at, to


def _forms(value: str) -> Iterator[str]:
    """Every text in which a value may turn up in one line."""
    forms = [value, orjson.dumps(value).decode()[1:-1], *_in_base64(value.encode())]
    for encoded in (quote(value, safe=""), quote(value), quote_plus(value)):
        forms += (encoded, re.sub("%..", lambda match: match[0].lower(), encoded))
    for form in forms:
        for line in form.split("\n"):
            if len(stripped := line.strip()) >= MIN_CHARS and len(value.strip()) >= MIN_CHARS:
                yield stripped


def _in_base64(value: bytes) -> Iterator[str]:
    """Yield what of a value's base64 text does not depend on its neighbours, by alignment."""
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        whole = encode(value).decode()
        yield whole
        for columns in _WRAPS:
            yield "\n".join(whole[at : at + columns] for at in range(0, len(whole), columns))
        for before, unsure in enumerate((0, 2, 3)):
            text = encode(bytes(before) + value).decode()
            sure = (before + len(value)) * 8 // 6
            yield text[unsure:sure]
