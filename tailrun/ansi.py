"""Terminal sequences in text: colours, cursor movements, titles. The one place that takes them out.

`strip_ansi` is what `ansi=strip` answers; `harmless` and `one_line` are what a terminal may be given.
Programs choose this text, so all are linear in it: a sequence's body never holds what begins another
one, and no expression has two ways to match the same characters.
"""

from __future__ import annotations

import re

FIRST = "\x1b\x90\x98\x9b\x9d\x9e\x9f"
"""What sequences begin with: ESC, and the eight-bit forms of DCS, SOS, CSI, OSC, PM and APC."""

# ECMA-48: CSI … final byte; OSC and the other strings up to their end; ESC with one more; and, at the
# end of a line, what was cut off. A string without an end, or in which another sequence begins, loses
# its introducer alone: the text behind a stray byte stays readable.
_BODY = r"[^\x07\x1b\x90\x98\x9b-\x9f]*"
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*(?:[@-~]|\Z)"
    rf"|(?:\x1b\]|\x9d){_BODY}(?:\x07|\x1b\\|\x9c)"
    rf"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f]){_BODY}(?:\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?|[\x90\x98\x9b\x9d-\x9f]"
)
_COLOUR = re.compile(r"\x1b\[[0-9;:]{0,64}m")
_CONTROLS = (*range(0x1B), *range(0x1C, 0x20), *range(0x7F, 0xA0))
"""C0, DEL and C1, without ESC."""
_BREAKS = "\t\n\v\f\r\x85\u2028\u2029"
_LOUD = dict.fromkeys(code for code in _CONTROLS if chr(code) not in "\t\n")
_IN_A_LINE = dict.fromkeys(_CONTROLS) | dict.fromkeys(map(ord, _BREAKS), " ")


def strip_ansi(text: str) -> str:
    """Return `text` without terminal sequences."""
    return _SEQUENCE.sub("", text) if any(first in text for first in FIRST) else text


def harmless(text: str, *, colours: bool) -> str:
    """Return `text` without what does more to a terminal than print; `colours` lets those through."""
    return (_SEQUENCE.sub(_colour, text) if colours else strip_ansi(text)).translate(_LOUD)


def one_line(text: str) -> str:
    """Return `text` for a cell, a name, a message: `harmless`, and a blank for what ends lines or columns."""
    return strip_ansi(text).translate(_IN_A_LINE)


def _colour(sequence: re.Match[str]) -> str:
    return sequence[0] if _COLOUR.fullmatch(sequence[0]) else ""
