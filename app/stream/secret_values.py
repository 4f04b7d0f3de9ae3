r"""Which values of an environment are secret, and every text in which one may turn up in a line of output.

A name is read word by word (`DB_PASS`, `dbPass`, `db-pass`), never as a mere text: TOKENIZER, MONKEY
and AUTHOR hold no secret. Its last word says what the value is, so TOKEN_TTL and PASSWORD_FILE are
none. And a value that is plain (a number, a flag, a short word, the path of a file) is not hidden
whatever it is called: hiding it would cut it out of words and numbers that mean something else.

Of any variable, whatever its name, passwords inside of addresses (`scheme://user:password@host`)
and of pairs (`host=db password=…`, JSON) are secret. Pure; every expression here is linear.

A value turns up unchanged, base64-encoded (whatever came before it, so in all three alignments, and as
`base64` wraps it), URL-encoded and as a JSON string, with or without `\u` escapes. A value of several lines
is found line by line, since that is how it is printed. A form of few characters, and one that is a single
word or number, is hidden only where no letter or digit is next to it: `a1b2c3` must not be cut out of
`fa1b2c30`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus, unquote, unquote_plus

MIN_CHARS = 4
"""A shorter value is no secret: hiding it would hide everything."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET = _words(
    """
    apikey authorization bearer cookie cookies credential credentials creds cred dsn jwt netrc passcode
    passphrase passwd password passwords pat psk secret secrets token tokens
    """,
)
"""Words that make a name secret in any place."""
_SECRET_AT_THE_END = _words(
    """
    auth key keys mnemonic oauth otp pass pin private pw pwd salt seed session sessionid sid sig
    signature totp
    """,
)
"""Words that make a name secret only at its end: AUTH, but not AUTH_MODE."""
_GLUED = re.compile(
    r"\w*(?:password|passwd|passphrase|secret|token|credentials?"
    r"|(?:api|access|secret|private|signing|encryption|auth|ssh|master|account|license|shared)key"
    r"|(?:access|secret|private|account)keyid"
    r"|(?:db|pg|user|ssh|smtp|mysql|admin|root|redis|my|ftp|mail|proxy|http)(?:pass|pwd))",
)
"""Words in one: PGPASSWORD, authtoken, DBPASS."""
_ABOUT = _words(
    """
    age agent alg algo algorithm at aud audience backend bits bucket budget bytes charset class cmd
    column command cost count date days digits dir directory disable disabled domain driver duration
    email enable enabled encoding endpoint env expiration expire expires expiry field file files folder
    format group header help helper hint host hours id ids index interval iss issuer iterations kind
    label len length level lifetime limit limits login manager max method min minutes mode model ms name
    namespace num number optional parallelism param parameter path pattern policy port prefix price
    prompt provider rate rates realm ref regex region required role rotation rounds s schema scheme
    scope scopes seconds separator server service size sock socket source status store strategy strength
    suffix table time timeout ttl type uri url usage user username var version window
    """,
)
"""Words that, at a name's end, make it tell something about a secret."""
_MORE = _words(
    """
    a b base64 b64 backup current default dev hex live main new next old pem previous prod production
    raw secondary staging test value
    """,
)
"""Words behind a secret's that change nothing: SIGNING_KEY_OLD."""
_NO_KEY = _words(
    """
    cache composite config dedup feature foreign group hot idempotency index lookup object partition
    primary pub public range routing shortcut sort translation unique
    """,
)
_ID_OF = _words(
    """
    secret session access cookie
    """,
)

_PLAIN_WORDS = _words(
    """
    automatic basicauth certificate changeme disabled encrypted example minioadmin optional password
    placeholder postgres postgresql required undefined
    """,
)
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F]{1,8}|[\d_.,:/eE+-]*\d ?(?:%|[kKmMgGtT]i?[bB]?|ms|us|ns|s|m|h|d|min|B)?)"
)
_MOST_DIGITS = 11
_SHORT_WORD = 7
_FILE = re.compile(
    r"(?:~|\.{0,2}|[A-Za-z]:)[/\\][^\s]{1,4000}\.(?:cer|cfg|conf|crt|env|ini|jks|json|key|kubeconfig|p12|pem|pfx"
    r"|sock|toml|txt|yaml|yml)|(?:/var)?/run/[^\s]{1,4000}",
)
_TOKEN_LIKE = re.compile(
    r"(?:sk-|sk_live_|sk_test_|rk_live_|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|AKIA|ASIA|AIza|npm_|pypi-|hf_"
    r"|dop_v1_|SG\.|shpat_|whsec_|tr_|eyJ)[\w.~+/=-]{16,}",
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://")
_BARE_USER = 16
"""`https://‹token›@host`: a user's name so long is a token."""
_NO_SCHEME = re.compile(r"[\w.+-]{1,64}:(?!//)(\S{4,1024})@[\w(\[]")
_PAIR = re.compile(
    r"(?<![\w.-])([A-Za-z][\w.-]{0,63})\s{0,3}[=:](?!//)\s{0,3}"
    r"(?:\"([^\"]{1,4096})\"|'([^']{1,4096})'|\{([^{}]{1,256})\}|([^\s;,&\"'{}]{1,4096}))",
)
_SCHEME_WORD = re.compile(r"(?:Bearer|Basic|Token|Bot|Digest|ApiKey)\s{1,8}(\S{4,4096})", re.IGNORECASE)
_USER_AND = re.compile(r"[^\s:/]{1,64}:([^\s/][^\s]{3,4095})")
_DEEPEST = 8
_MOST_PARTS = 64
_PART_CHARS = 8


def is_secret_name(name: str) -> bool:
    """Whether a variable that is called so holds a secret."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words in (["pwd"], ["old", "pwd"], ["oldpwd"]):
        return False
    if words[-1] == "url" and "webhook" in words:
        return True  # the address alone allows to send
    while len(words) > 1 and words[-1] in _MORE:
        words.pop()
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in {"id", "ids"}:
        return before in _ID_OF or words[-3:-1] == ["access", "key"]
    if last in _ABOUT:
        return _GLUED.fullmatch(last) is not None
    if last in _SECRET_AT_THE_END and not (last in {"key", "keys"} and _NO_KEY.intersection(words)):
        return True
    return any(word in _SECRET or _GLUED.fullmatch(word) for word in words)


def is_plain(value: str) -> bool:
    """Whether a value can be no secret by what it is: nothing that anybody could not guess or may not see."""
    text = value.strip()
    if len(text) < MIN_CHARS or text.lower() in _PLAIN_WORDS:
        return True
    if text.isascii() and text.isalpha():
        return len(text) <= _SHORT_WORD
    if len(text) <= 2 * _MOST_DIGITS and _NUMBER.fullmatch(text):
        return sum(map(str.isdigit, text)) <= _MOST_DIGITS
    return _FILE.fullmatch(text) is not None


def secrets_in(variables: Mapping[str, str]) -> Iterator[str]:
    """Yield every value, and every part of one, that must not be shown."""
    for name, value in variables.items():
        named = is_secret_name(name)
        if (named and not _open_address(value)) or _TOKEN_LIKE.fullmatch(value.strip()):
            yield from (part for part in (value, *_parts(value)) if not is_plain(part))
        yield from inside(value)


def inside(value: str) -> Iterator[str]:
    """Yield the secrets inside of an address, a connection string or a JSON text."""
    for part in _inside(value):
        for form in dict.fromkeys((part, unquote(part), unquote_plus(part))):
            if not is_plain(form):
                yield form


def _inside(value: str) -> Iterator[str]:
    for match in islice(_ADDRESS.finditer(value), _MOST_PARTS):
        yield from _of_address(value[match.end() : match.end() + 4096])
    if match := _NO_SCHEME.match(value):
        yield match[1]
    if value.lstrip()[:1] in {"{", "["}:
        yield from _in_json(value)
    for match in _PAIR.finditer(value):
        if is_secret_name(match[1]):
            yield next(filter(None, match.groups()[1:]))


def _of_address(rest: str) -> Iterator[str]:
    """Yield what is before the `@` of an address, where a password may hold `/`, `#`, `?` and `@`."""
    rest = re.split(r"[\s\"'<>]", rest, maxsplit=1)[0]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = (authority if "@" in authority else rest).rpartition("@")
    name, colon, password = user.partition(":")
    if not at:
        return
    if colon and password:
        yield password
    elif len(name) >= _BARE_USER and "/" not in name:
        yield name
    if len(name) >= _BARE_USER and colon and password in {"", "x-oauth-basic", "x"}:
        yield name


def _open_address(value: str) -> bool:
    """Whether a value is an address that gives nothing away, as `postgres://localhost/db`."""
    text = value.strip()
    return _ADDRESS.match(text) is not None and "@" not in text and "?" not in text and not _path_secret(text)


def _path_secret(address: str) -> bool:
    """Whether an address' path is as good as a password: webhooks have such."""
    return any(len(part) >= _BARE_USER and not part.isdigit() for part in address.split("/")[3:])


def _in_json(value: str) -> Iterator[str]:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return
    yield from _walk(found, "", 0)


def _walk(found: Any, name: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        return
    if isinstance(found, dict):
        for key, value in found.items():
            yield from _walk(value, str(key), depth + 1)
    elif isinstance(found, list):
        for value in found:
            yield from _walk(value, name, depth + 1)
    elif isinstance(found, str):
        if is_secret_name(name) and not _open_address(found):
            yield found
        if depth and _ADDRESS.search(found):
            yield from _inside(found)


def _parts(value: str) -> Iterator[str]:
    """Yield what of a secret value is one by itself: each of a list, the password of `user:password`."""
    text = value.strip()
    if match := _SCHEME_WORD.fullmatch(text):
        yield match[1]
    if match := _USER_AND.fullmatch(text):
        yield match[1]
    parts = re.split(r"[\s,;]+", text)
    if 1 < len(parts) <= _MOST_PARTS and "\n" not in text:
        yield from (part for part in parts if len(part) >= _PART_CHARS)


# -- forms --------------------------------------------------------------------------------

_WRAPS = (64, 76)
_ALONE_CHARS = 8
_WORD_CHARS = 16
_NOT_IN_JS = "!'()*"
"""Characters that `encodeURIComponent` leaves unchanged, and Python's `quote` does not."""
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
"""How Go's JSON writes these."""


class Form(NamedTuple):
    """A text to look for; `alone`: only where no letter or digit is before or behind it."""

    text: str
    alone: bool = False


def forms_of(value: str) -> Iterator[Form]:
    """Yield the forms of a value, some more than once; none of a value that is too short to be hidden."""
    value = value.encode("utf-8", "replace").decode()
    if len(value.strip()) < MIN_CHARS:
        return
    several = "\n" in value.strip()
    for text in (value, *_json_forms(value), *_url_forms(value)):
        for line in text.split("\n"):
            stripped = line.strip()
            if len(stripped) >= MIN_CHARS and not (several and is_plain(stripped)):
                yield Form(stripped, alone=_needs_borders(stripped))
    for text in _base64_forms(value.encode()):
        if len(text) >= MIN_CHARS:
            yield Form(text)


def _needs_borders(text: str) -> bool:
    one_word = text.isascii() and (text.isalpha() or text.isdigit())
    return len(text) < _ALONE_CHARS or (one_word and len(text) < _WORD_CHARS)


def _json_forms(value: str) -> Iterator[str]:
    plain, escaped = (json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    yield from (
        plain,
        escaped,
        plain.translate(_ESCAPES),
        plain.replace("/", "\\/"),
        escaped.replace("/", "\\/"),
    )
    yield re.sub(r"\\u....", lambda match: "\\u" + match[0][2:].upper(), escaped)


def _url_forms(value: str) -> Iterator[str]:
    for encoded in (quote(value, safe=""), quote(value), quote_plus(value), quote(value, safe=_NOT_IN_JS)):
        yield encoded
        yield re.sub("%..", lambda match: match[0].lower(), encoded)


def _base64_forms(value: bytes) -> Iterator[str]:
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
