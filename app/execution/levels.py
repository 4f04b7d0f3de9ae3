"""How severe a line of output is, read from the ways in which programs commonly say so.

Programs print `ERROR: x`, `[WARN] x`, `level=info`, `WARNING:root:x`, `{"level":"error"}`,
`2026-11-20 12:00:00,123 ERROR x` and `E1120 12:00:00.1 …`; a stream of thousands of lines a
second must not slow down for it. So the first character picks what could stand there, and one
anchored expression looks at the first 64 characters; most lines cost a dictionary look-up.
Anything else is `info`: a word like "error" in prose makes no error.

Programs choose this text, and `re` holds the GIL while it looks: a detector sees a bounded head of
the line, and no expression has two ways to match the same characters (tests/unit/test_hostile_text.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from app.models import Level

_WORDS = {
    Level.ERROR: "ERROR ERR CRITICAL CRIT FATAL PANIC ALERT EMERGENCY EMERG SEVERE E F",
    Level.WARNING: "WARNING WARN W",
    Level.INFO: "INFORMATION INFO NOTICE I",
    Level.DEBUG: "DEBUG TRACE VERBOSE D",
}
_LEVELS = {word: level for level, words in _WORDS.items() for word in words.split()}
_PINO = {
    "10": Level.DEBUG,
    "20": Level.DEBUG,
    "30": Level.INFO,
    "40": Level.WARNING,
    "50": Level.ERROR,
    "60": Level.ERROR,
}

_LONG = "|".join(word for word in _LEVELS if len(word) > 1)
_COLOUR = r"(?:\x1b\[[0-9;]*m)*"
_HEAD = 64
_JSON_HEAD = 2048
_SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")

_UPPER = re.compile(rf"({_LONG})(?=[\s:\]|>)!\x1b(\[-]|$)")
_ANY_CASE = re.compile(rf"({_LONG})(?:\[\w+\])?(?=:)", re.IGNORECASE)
_APT = re.compile(r"([EW]): ")
_KLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d")
_RAISED = re.compile(r"Traceback \(most recent|[A-Z]\w*(?:Error|Exception): ")
_BRACKETED = re.compile(rf"[\[(<|*\s]+{_COLOUR}({_LONG})\s*{_COLOUR}[\])>|*]", re.IGNORECASE)
_AFTER_TIME = re.compile(
    rf"(?:^|[\s\[|(<\t]){_COLOUR}(?:({_LONG})|(?i:(?<=[\[|(<\t])({_LONG})(?=\s*[\])>|\t])))"
    rf"(?=[\s:\]|>)/\x1b]|$)",
)
_TIMED = re.compile(r"\[?\d{1,4}[-/:.]\d\d[-/:.]\d\d")
_FIELD = re.compile(r"([\w.]+)=(\"[^\"]*\"|\S*)(?: +|$)")
_LEVEL_FIELDS = frozenset({"level", "lvl", "severity"})
_WORD = re.compile(r"\"?(\w+)")
_JSON = re.compile(r"\"(?:level|severity|levelname|lvl|log\.level|log_level)\"\s*:\s*\"?(\w+)")


def level_of(text: str) -> Level:
    """Return the level that a line claims for itself; `info` if it claims none."""
    detect = _DETECTORS.get(text[:1])
    return Level.INFO if detect is None else detect(text)


def _named(name: str) -> Level:
    return _LEVELS.get(name.upper()) or _PINO.get(name) or Level.INFO


def _letter(text: str) -> Level:
    head = text[:_HEAD]
    found = _UPPER.match(head) or _ANY_CASE.match(head) or _APT.match(head) or _KLOG.match(head)
    if found:
        return _named(found[1])
    return Level.ERROR if _RAISED.match(head) else Level.INFO


def _capital(text: str) -> Level:
    return Level.ERROR if _RAISED.match(text[:_HEAD]) else Level.INFO


def _pair(text: str) -> Level:
    """Walk the fields of a logfmt line: each is matched once, whatever the next one is."""
    at, head = 0, text[: 4 * _HEAD] if "=" in text[:_HEAD] else ""
    while field := _FIELD.match(head, at):
        if field[1] in _LEVEL_FIELDS:
            word = _WORD.match(field[2])
            return _named(word[1]) if word else Level.INFO
        at = field.end()
    return Level.INFO


def _small(text: str) -> Level:
    head = text[:_HEAD]
    found = _ANY_CASE.match(head)
    return _named(found[1]) if found else _pair(text)


def _time(text: str) -> Level:
    head = text[:_HEAD]
    found = _AFTER_TIME.search(head) if _TIMED.match(head) else None
    return _named(found[1] or found[2]) if found else Level.INFO


def _bracket(text: str) -> Level:
    found = _BRACKETED.match(text[:_HEAD])
    return _named(found[1]) if found else _time(text)


def _object(text: str) -> Level:
    found = _JSON.search(text, 0, _JSON_HEAD)
    return _named(found[1]) if found else Level.INFO


def _coloured(text: str) -> Level:
    plain = _SEQUENCE.sub("", text[: 2 * _HEAD])
    return Level.INFO if plain.startswith("\x1b") else level_of(plain)


_DETECTORS: dict[str, Callable[[str], Level]] = {
    **dict.fromkeys("ABCDEFGHIJKLMNOPQRSTUVWXYZ", _capital),
    **{word[0]: _letter for word in _LEVELS},
    **{word[0].lower(): _small for word in _LEVELS},
    **dict.fromkeys("ltms", _small),
    **dict.fromkeys("0123456789", _time),
    **dict.fromkeys("[(<|*", _bracket),
    "{": _object,
    "\x1b": _coloured,
}
