"""How severe a line of output is, read from the forms that programs commonly use.

Programs print `ERROR: x`, `[WARN] x`, `level=info`, `WARNING:root:x`, `{"level":"error"}`,
`2026-11-20 12:00:00,123 ERROR x` and `E1120 12:00:00.1 …`; a stream of thousands of lines a
second must not slow down for it. So the first character picks what could be there, and one
anchored expression looks at the first 64 characters; most lines cost a dictionary look-up and a
few searches for the words without which no compiler, runtime or package manager tells a failure.
Anything else is `info`: a word like "error" in prose makes no error, nor does `error: none`.

Programs choose this text, and `re` holds the GIL while it looks: a detector sees a bounded head of
the line, and no expression has two ways to match the same characters (tests/unit/test_hostile_text.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tailrun.process.lines import Level

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
_FAILURE_HEAD = 192
_CRASHES = frozenset("ABEFIQSTtn")
_NESTING = {"{": 1, "[": 1, "}": -1, "]": -1}
_SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")

_MARK = r":\]|>)!\x1b(\[-"
# FATAL FURY is a game, and ALERT manager is up: such words need a mark behind them, or a column's width.
_UPPER = re.compile(
    rf"(?:(?!FATAL|CRIT|ALERT|PANIC|SEVERE|EMERG)({_LONG})(?=[\s{_MARK}]|$)"
    rf"|(FATAL|CRITICAL|CRIT)(?=[{_MARK}]|$|\s(?![A-Z]{{2}}))"
    rf"|({_LONG})(?=[{_MARK}]|$|\s\s))"
)
_ANY_CASE = re.compile(rf"({_LONG})(?:\[\w+\])?(?=:)", re.IGNORECASE)
_APT = re.compile(r"([EW]): ")
_KLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d")
_RAISED = re.compile(r"(?:[A-Za-z_$][\w$]*\.)*[A-Z]\w*(?:Error|Exception)(?: \[\w+\])?: ")
_RAISED_BARE = re.compile(r"(?:[a-z_$][\w$]*\.)+[A-Z]\w*")
_RAISED_ENDS = ("Error", "Exception")
_CRASHED = re.compile(
    r"Traceback \(most recent|Exception in thread \"|thread '[^']*' (?:\(\d+\) )?panicked at "
    r"|npm (?:ERR!|error|(WARN|warn)) |Segmentation fault|[A-Z][\w/ ]{1,40} \(core dumped\)"
)
# main.c:3:5: error: · a.ts(3,5): error TS2304: · a.ts:3:5 - error TS2304: · gcc: fatal error:
_COMPILER = re.compile(
    r"(?:^[\w./+-]{1,100}: |:\d{1,7}(?:: | - )|\(\d{1,7}(?:,\d{1,7}){0,3}\) ?: |^)"
    r"(?:fatal (error)|(?<!^)(error|warning))(?=:|\[| [A-Z]{1,8}\d{1,8}:)"
)
_NOTHING = re.compile(r":?\s*(?:none|null|nil|no|false|0|n/a|ok)[\s.]*", re.IGNORECASE)
_BRACKETED = re.compile(rf"[\[(<|*\s]+{_COLOUR}({_LONG})\s*{_COLOUR}[\])>|*]", re.IGNORECASE)
_AFTER_TIME = re.compile(
    rf"(?:^|[\s\[|(<\t]){_COLOUR}(?:({_LONG})|(?i:(?<=[\[|(<\t])({_LONG})(?=\s*[\])>|\t])))"
    rf"(?=[\s:\]|>)/\x1b]|$)",
)
_TIMED = re.compile(r"\[?\d{1,4}[-/:.]\d\d[-/:.]\d\d")
_FIELD = re.compile(r"([\w.]+)=(\"[^\"]*\"|\S*)(?: +|$)")
_LEVEL_FIELDS = frozenset({"level", "lvl", "severity"})
_WORD = re.compile(r"\"?(\w+)")
_STRING_OR_NESTING = re.compile(r"\"(?:[^\"\\]|\\(?:.|\Z))*(?:\"|\Z)|[\[\]{}]", re.DOTALL)
_NESTED = re.compile(r"[\[{]")
_JSON = re.compile(r"\"(?:level|severity|levelname|lvl|log\.level|log_level)\"\s*:\s*\"?(\w+)")


def level_of(text: str) -> Level:
    """Return the level that a line claims for itself; `info` if it claims none."""
    detect = _DETECTORS.get(text[:1])
    level = None if detect is None else detect(text)
    return level or _failure(text) or Level.INFO


def _named(name: str) -> Level:
    return _LEVELS.get(name.upper()) or _PINO.get(name) or Level.INFO


def _letter(text: str) -> Level | None:
    head = text[:_HEAD]
    found = _UPPER.match(head) or _ANY_CASE.match(head) or _APT.match(head) or _KLOG.match(head)
    return _unless_nothing(found, text)


def _small(text: str) -> Level | None:
    return _unless_nothing(_ANY_CASE.match(text[:_HEAD]), text) or _pair(text)


def _unless_nothing(found: re.Match[str] | None, text: str) -> Level | None:
    """Return the level that was found, unless its value is empty: `error: none`."""
    if found is None:
        return None
    nothing = len(text) <= _HEAD and _NOTHING.fullmatch(text, found.end())
    return Level.INFO if nothing else _named(found[found.lastindex or 0])


def _pair(text: str) -> Level | None:
    """Walk the fields of a logfmt line: each is matched once, whatever the next one is."""
    at, head = 0, text[: 4 * _HEAD] if "=" in text[:_HEAD] else ""
    while field := _FIELD.match(head, at):
        if field[1] in _LEVEL_FIELDS:
            word = _WORD.match(field[2])
            return _named(word[1]) if word else Level.INFO
        at = field.end()
    return None


def _time(text: str) -> Level | None:
    head = text[:_HEAD]
    found = _AFTER_TIME.search(head) if _TIMED.match(head) else None
    return _named(found[1] or found[2]) if found else None


def _bracket(text: str) -> Level | None:
    found = _BRACKETED.match(text[:_HEAD])
    return _named(found[1]) if found else _time(text)


def _object(text: str) -> Level:
    """Return the object's own level; a level within another object is of something else."""
    text = text[:_JSON_HEAD]
    depth = at = 0
    for found in _JSON.finditer(text):
        if at == 0 and not _NESTED.search(text, 1, found.start()):
            depth = 1
        else:
            for token in _STRING_OR_NESTING.finditer(text, at, found.start()):
                depth += _NESTING.get(token[0], 0)
        at = found.start()
        if depth == 1:
            return _named(found[1])
    return Level.INFO


def _coloured(text: str) -> Level | None:
    plain = _SEQUENCE.sub("", text[: 2 * _HEAD])
    return None if plain.startswith("\x1b") else level_of(plain)


def _failure(text: str) -> Level | None:
    """Recognize how compilers, runtimes, shells and package managers report failures."""
    head = text[:_FAILURE_HEAD]
    if ":" in head and ("rror" in head or "xception" in head or "arning" in head or "dumped" in head):
        if _RAISED.match(head) or "(core dumped)" in head:
            return Level.ERROR
        if level := _compiler(text, head):
            return level
    if head[:1] in _CRASHES and (found := _CRASHED.match(head)):
        return Level.WARNING if found[1] else Level.ERROR
    return Level.ERROR if head.endswith(_RAISED_ENDS) and _RAISED_BARE.fullmatch(head) else None


def _compiler(text: str, head: str) -> Level | None:
    found = _COMPILER.search(head)
    if found is None or (len(text) <= _FAILURE_HEAD and _NOTHING.fullmatch(text, found.end())):
        return None
    return Level.WARNING if found[found.lastindex or 0] == "warning" else Level.ERROR


_DETECTORS: dict[str, Callable[[str], Level | None]] = {
    **{word[0]: _letter for word in _LEVELS},
    **{word[0].lower(): _small for word in _LEVELS},
    **dict.fromkeys("ltms", _small),
    **dict.fromkeys("0123456789", _time),
    **dict.fromkeys("[(<|*", _bracket),
    "{": _object,
    "\x1b": _coloured,
}
