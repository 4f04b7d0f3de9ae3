"""Terminal sequences in text: colours, cursor movements, titles. What `ansi=strip` takes out."""

from __future__ import annotations

import re

# ECMA-48: CSI … final byte; OSC and the other strings up to their end; ESC with one more; and, at the
# end of a line, what was cut off. A string without an end loses its first two characters alone.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*(?:[@-~]|$)"
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[PX^_][^\x1b\x9c]*(?:\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?|[\x9b\x9d]"
)
_FIRST = ("\x1b", "\x9b", "\x9d")


def strip_ansi(text: str) -> str:
    """Return `text` without terminal sequences."""
    return _SEQUENCE.sub("", text) if any(first in text for first in _FIRST) else text
