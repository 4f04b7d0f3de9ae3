"""Keeps secrets out of lines and records: known values in their usual guises, and what looks like a secret.

`app.stream.secret_values` says which values are secret, `app.stream.secret_values` in which guises each is
found, `app.stream.known_values` where they are in a line. Here that becomes `***`, also where a
line was cut or a key has several lines.

Output without secrets must stay cheap: a whole batch is searched for the few literals that a
match needs before any line is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from app.stream.known_values import KnownValues, Span
from app.stream.secret_values import forms_of
from tailrun.process.lines import Line, Stream

MASK = "***"
_HOLD_CHARS = 4096
"""How much of an over-long line's piece waits for the next: a secret may lie across the cut."""
_WORDS = frozenset({Stream.MODEL, Stream.REASONING})
"""Streams whose pieces come as they are written: little of them may wait."""
_BREAK = re.compile(r"[\s\u2e80-\U0010ffff]")
"""Where words can be cut: at a space, and at letters of scripts that have no spaces."""
_OPENINGS = ("earer", "EARER", "uthorization", "taging-", "-----BEGIN")
"""After these a secret may follow behind a space, at most `_OPENING_CHARS` later."""
_OPENING_CHARS = 64
_LONGEST_CHARS = 64 * 1024
"""A longer text in one line is no secret that can be kept back as a whole."""
_KEY_LINES = 1000
"""A private key that never ends stops hiding lines after so many."""

_OURS = frozenset({"code", "next_attempt_at", "status", "step", "step_id", "tool"})
"""Fields of records whose values clients go by."""

_KEY_MARK = "PRIVATE KEY"
_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")


class _Look(NamedTuple):
    """What looks like a secret, and one of which texts is never missing where there is one."""

    marks: tuple[str, ...]
    pattern: re.Pattern[str]
    needs: str = ""
    """What must be there as well, where marks alone are frequent."""


_LOOKS = (
    _Look(("earer ", "EARER "), re.compile(r"(?i:\bbearer) {1,8}([\w.~+/=-]{16,4096})", re.ASCII)),
    _Look(("uthorization",), re.compile(r"uthorization\W{1,8}(?i:basic) {1,8}([A-Za-z0-9+/=_-]{8,4096})")),
    _Look(("AKIA", "ASIA"), re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])")),
    _Look(("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), re.compile(r"gh[pousr]_[A-Za-z0-9]{20,255}", re.ASCII)),
    _Look(("github_pat_",), re.compile(r"github_pat_\w{20,255}", re.ASCII)),
    _Look(("tr_",), re.compile(r"tr_(?<![\w-]tr_)[\w-]{43}(?![\w-])", re.ASCII)),
    _Look(
        ("eyJ",),
        re.compile(r"eyJ(?<![\w-]eyJ)[\w-]{8,4096}\.eyJ[\w-]{8,8192}\.[\w-]{8,4096}", re.ASCII),
    ),
    _Look(("://",), re.compile(r"://[^\s/:@\"']{0,128}:([^\s/@\"']{3,256})@"), needs="@"),
    _Look(("X-Amz-Signature=",), re.compile(r"X-Amz-Signature=([0-9a-f]{64})")),
    _Look(
        ("taging-Token", "taging-token"),
        re.compile(r"taging-[Tt]oken\W{1,8}([0-9]{1,15}\.[0-9a-f]{64})"),
    ),
    _Look((_KEY_MARK,), _KEY),
)
_LOOK_BY_MARK = {mark: look for look in _LOOKS for mark in look.marks}


class Masker:
    """The values to hide; immutable, shared by all runs that hide the same.

    `patterns` are regular expressions of the operator's; where one has a group, the first group is
    hidden instead of the whole match.

    Raises:
        ValueError: a pattern is not a regular expression.
    """

    def __init__(self, values: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        self._forms = tuple(dict.fromkeys(form for value in values for form in forms_of(value)))
        self._known = KnownValues(self._forms, tuple(_LOOK_BY_MARK))
        self._patterns = tuple(map(_compile, patterns))
        self._widest = max((len(form.text) for form in self._forms if _BREAK.search(form.text)), default=0)

    def text(self, text: str) -> str:
        """Return `text`, of one line or of several, with `***` in place of every secret."""
        if not self.suspects(text):
            return text
        if "\n" not in text:
            return masked(text, self.spans(text))
        lines = LineMasker(self).lines([Line(Stream.SYSTEM, line) for line in text.split("\n")])
        return "\n".join(line.content for line in lines)

    def record(self, value: Any) -> Any:
        """Return what a record or an event holds, at any depth, with its texts masked.

        What is one of Tailrun's own words (a status, a code, a time) says nothing and stays.
        """
        if type(value) is str:
            return self.text(value)
        if isinstance(value, Mapping):
            fields: Mapping[str, Any] = value
            return {key: part if key in _OURS else self.record(part) for key, part in fields.items()}
        if isinstance(value, (list, tuple)):
            parts: Sequence[Any] = value
            return [self.record(part) for part in parts]
        return value

    def suspects(self, text: str) -> bool:
        """Whether a line or a batch of lines is worth a closer look; cheap."""
        known, marks = self._known.look(text)
        if known or self._patterns:
            return True
        looks = map(_LOOK_BY_MARK.__getitem__, marks)
        return any(look.pattern.search(text) for look in looks if look.needs in text)

    def word_cut(self, text: str) -> int:
        """Return how much of an unfinished line of words can go out: no secret lies across that place.

        With patterns of the operator's, which may be of any length, none of it.
        """
        if self._patterns:
            return 0
        end = _break_before(text, len(text) - self._widest)
        openings = [text.rfind(each, max(0, end - _OPENING_CHARS)) for each in _OPENINGS]
        return _break_before(text, min([end, *(at for at in openings if at >= 0)]))

    def spans(self, text: str, *, whole: bool = False) -> list[Span]:
        """Find every secret in one line: start and end, in order, without overlaps.

        `whole`: with what it is known by (the `Bearer` before a token), which is not hidden.
        """
        found, marks = self._known.spans(text)
        for mark in marks:
            look = _LOOK_BY_MARK[mark]
            if look.needs in text:
                found += _keys(text)[0] if look.pattern is _KEY else _matches(look.pattern, text, whole=whole)
        for pattern in self._patterns:
            found += _matches(pattern, text, whole=whole)
        return list(_merged(sorted(found))) if len(found) > 1 else found


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
        text = line.content
        if line.stream in self._held:
            text = self._held.pop(line.stream) + text
        if line.stream in self._key_lines:
            text = self._inside_key(text, line.stream)
        spans = self._masker.spans(text)
        if not spans and not line.split and text is line.content:
            return line
        cut = len(text)
        if line.split and line.stream not in self._key_lines:
            most = self._masker.word_cut(text) if line.stream in _WORDS else 0
            cut = _cut(text, self._masker.spans(text, whole=True), most)
        if cut < len(text):
            text, self._held[line.stream] = text[:cut], text[cut:]
            spans = [span for span in spans if span[1] <= cut]
        elif spans and _KEY_MARK in text and _keys(text)[1]:
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


def masked(text: str, spans: Sequence[Span]) -> str:
    """Return `text` with `***` in place of each span."""
    if len(spans) == 1:
        start, end = spans[0]
        return f"{text[:start]}{MASK}{text[end:]}"
    out, at = list[str](), 0
    for start, end in spans:
        out += (text[at:start], MASK)
        at = end
    return "".join((*out, text[at:]))


def _cut(text: str, spans: Sequence[Span], words: int) -> int:
    """Where a piece may be cut: enough stays back to see a secret whole, and none is cut in two.

    `words`: how much can go out in any case.
    """
    cut = max(words, len(text) - _HOLD_CHARS)
    for start, end in spans:
        if start < cut < end:
            return start if len(text) - start <= _LONGEST_CHARS else len(text)
    return cut


def _break_before(text: str, end: int) -> int:
    """Return the last place up to `end` behind which another word begins; 0: there is none."""
    while end > 0 and not _BREAK.match(text, end - 1):
        end -= 1
    return max(0, end)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"LOG_MASK_PATTERNS: {pattern!r} is not a regular expression: {error}") from None


def _keys(text: str) -> tuple[list[Span], bool]:
    """Find the private keys of a line, and whether the last one continues in the next."""
    spans, at = list[Span](), 0
    while begin := _KEY.search(text, at):
        end = _KEY_END.search(text, begin.end())
        if end is None:
            return [*spans, (begin.start(), len(text))], True
        at = end.end()
        spans.append((begin.start(), at))
    return spans, False


def _matches(pattern: re.Pattern[str], text: str, *, whole: bool) -> list[Span]:
    group = 1 if pattern.groups and not whole else 0
    return [span for match in pattern.finditer(text) if (span := match.span(group))[0] < span[1]]


def _merged(spans: Sequence[Span]) -> Iterator[Span]:
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
