r"""Every text in which a secret value may turn up in one line of output.

As it stands, base64-encoded (whatever stood before it, so in all three alignments, and as `base64`
wraps it), URL-encoded and as a JSON string, with or without `\u` escapes. A value of several lines
is found line by line, since that is how it is printed.

A form of few characters, and one that is a single word or number, is hidden only where it stands
alone: the secret `a1b2c3` must not be cut out of `fa1b2c30`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote, quote_plus

from app.stream.secret_names import MIN_CHARS, is_plain

_WRAPS = (64, 76)
_ALONE_CHARS = 8
_WORD_CHARS = 16
_NOT_IN_JS = "!'()*"
"""What `encodeURIComponent` leaves as it is, and Python's `quote` does not."""
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
"""What Go's JSON writes of these."""


class Form(NamedTuple):
    """A text to look for; `alone`: only where no letter or digit goes on before or behind it."""

    text: str
    alone: bool = False


def forms_of(value: str) -> Iterator[Form]:
    """Yield the forms of a value, some more than once; none of a value that is too short to be hidden."""
    value = value.encode("utf-8", "replace").decode()
    if len(value.strip()) < MIN_CHARS:
        return
    several = "\n" in value.strip()
    for text in (value, *_in_json(value), *_in_url(value)):
        for line in text.split("\n"):
            stripped = line.strip()
            if len(stripped) >= MIN_CHARS and not (several and is_plain(stripped)):
                yield Form(stripped, alone=_needs_borders(stripped))
    for text in _in_base64(value.encode()):
        if len(text) >= MIN_CHARS:
            yield Form(text)


def _needs_borders(text: str) -> bool:
    one_word = text.isascii() and (text.isalpha() or text.isdigit())
    return len(text) < _ALONE_CHARS or (one_word and len(text) < _WORD_CHARS)


def _in_json(value: str) -> Iterator[str]:
    plain, escaped = (json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    yield from (
        plain,
        escaped,
        plain.translate(_ESCAPES),
        plain.replace("/", "\\/"),
        escaped.replace("/", "\\/"),
    )
    yield re.sub(r"\\u....", lambda match: "\\u" + match[0][2:].upper(), escaped)


def _in_url(value: str) -> Iterator[str]:
    for encoded in (quote(value, safe=""), quote(value), quote_plus(value), quote(value, safe=_NOT_IN_JS)):
        yield encoded
        yield re.sub("%..", lambda match: match[0].lower(), encoded)


def _in_base64(value: bytes) -> Iterator[str]:
    """Yield what of a value's base64 text does not depend on its neighbours, by alignment."""
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        whole = encode(value).decode()
        yield whole
        for columns in _WRAPS:
            yield from (whole[at : at + columns] for at in range(0, len(whole), columns))
        for before, unsure in enumerate((0, 2, 3)):
            text = encode(bytes(before) + value).decode()
            sure = (before + len(value)) * 8 // 6
            yield text[unsure:sure]
