"""Text of users costs time and memory in proportion to its length, wherever it goes.

An expression of `re`, or a loop of our own, that is worse than linear is a way to stop a process with
one line: `re` holds the GIL. `READERS` holds each function that meets such text, with the expressions
that see it; an expression that stands neither there nor in `OF_THE_OPERATOR` fails a test.
"""

from __future__ import annotations

import ast
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.agent.tools.interpreters import as_written_here
from app.commands.redis import quoted
from app.core.errors import TailrunError
from app.core.events import Event, EventType
from app.core.log_filter import LogFilter
from app.core.names import check_env, normalise, run_key
from app.db.row_codec import clean, to_json
from app.k8s.frames import Cursor, FrameReader, RawLines
from app.k8s.profile import amount, image_pattern
from app.plan.cron import check_steps, next_tick
from app.plan.fenced_plans import fenced_blocks, read_block
from app.plan.projects import ProjectConfig, check_project, is_project_id
from app.plan.run_fields import RETRY_CODES
from app.plan.task_values import PLACE
from app.plan.transcript import same_everywhere
from app.plan.webhook_url import checked
from app.redis.queue import run_id_of
from app.routes.files import byte_range, content_type, disposition
from app.routes.schemas import NewRun, NewToken
from app.stream import known_values
from app.stream.formats import Format, collapse_entries, encoding
from app.stream.masking import LineMasker, Masker
from app.stream.secret_values import inside, secrets_in
from tailrun import Event as ClientEvent
from tailrun.ansi import harmless, one_line, strip_ansi
from tailrun.commands.render import as_json
from tailrun.process.levels import level_of
from tailrun.process.lines import Line, Stream
from tailrun.process.output import LineSplitter
from tailrun.sse import SSEParser
from toolbox.frames import Frames as PodFrames
from toolbox.frames import Stream as PodStream

ROOT = Path(__file__).parents[2]
SHORT, FACTOR = 1_000, 8
MOST_GROWTH = 3 * FACTOR
"""Linear is `FACTOR`, quadratic `FACTOR` squared."""
LEAST_S = 0.0005
LEAST_BYTES = 200_000

pytestmark = pytest.mark.timeout(600)


# -- what meets text of users ---------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A function that meets text of users, and the expressions (`file:NAME`) that see it there."""

    read: Callable[[str], object]
    expressions: tuple[str, ...] = ()


def levels(text: str) -> None:
    for first in ("", "{", "[", "E", "l", "2026-11-20 ", "\x1b[1m"):
        level_of(first + text)


def splitter(text: str) -> None:
    """Whole, and in small pieces, as a pipe may bring it."""
    data = text.encode("utf-8", "replace")
    for size in (len(data) or 1, 500):
        lines = LineSplitter(Stream.STDOUT, max_line_bytes=1000)
        for at in range(0, len(data), size):
            lines.feed(data[at : at + size], at / 1000)
            lines.tick(at / 1000)
        lines.finish()


def pod_log(text: str) -> None:
    stamp = b"2026-11-20T12:00:00.123456789Z "
    raw = text.encode("utf-8", "replace")
    for line in (raw, orjson.dumps({"n": 1, "s": "o", "t": 1, "d": raw.decode()})):
        FrameReader(1, Cursor.parse(text, 1)).read([stamp + line], 0)
        RawLines(1, Cursor()).read([stamp + line], 0)
    stream = PodStream(PodFrames(), "o")
    for at in range(0, len(raw), 1000):
        stream.feed(raw[at : at + 1000], 1)
    stream.end(1)


def plans(text: str) -> None:
    for prompt in (text, f"```yaml\n{text}", f"```json\n{text}", f"   ~~~{text}`"):
        for block in list(fenced_blocks(prompt))[:3]:
            with suppress(Exception):
                read_block(block)


def log_line(text: str) -> None:
    line = clean(text)
    event = Event(1, EventType.LOG, 0, "r", 1, content=line, data={"cr": True})
    entries = [(1, event.encode())]
    collapse_entries(entries)
    encoding(Format.SSE, strip=True)(entries)
    LogFilter(q=line[:200]).select([event])
    to_json({text: text})


def terminal(text: str) -> None:
    strip_ansi(text)
    one_line(text)
    harmless(text, colours=True)
    quoted(text.encode("utf-8", "replace"))
    body = {"seq": 1, "type": "log", "ts": "2026-11-20T12:00:00Z", "run_id": "r", "attempt": 1}
    as_json(ClientEvent.of(body | {"content": text}))


def file_names(text: str) -> None:
    for name in (text, text[:900]):
        with suppress(TailrunError):
            normalise(name)
    with suppress(TailrunError):
        run_key(text, text)
    with suppress(TailrunError):
        byte_range(f"bytes={text}", 10)
    content_type(text.encode("utf-8", "replace").decode())
    disposition(text.encode("utf-8", "replace").decode())


def bodies(text: str) -> None:
    for body in (
        {"prompt": text, "run_at": text, "labels": {text: text}, "retry_on": [text, *RETRY_CODES]},
        {"argv": [text], "env": {text: text}, "webhook_url": text},
    ):
        with suppress(ValueError):
            NewRun.model_validate(body)
    with suppress(ValueError):
        NewToken.model_validate({"user_id": text})
    with suppress(TailrunError):
        check_env({text: text})
    with suppress(TailrunError):
        checked(f"https://{text[:1900]}", allow_private=True)
    with suppress(TailrunError):
        next_tick(text, text, 0)
    with suppress(TailrunError):
        check_steps(text)
    with suppress(ValueError):
        amount(text)
    for allowed in ("registry.example/*", "registry.example/*/box:*"):
        image_pattern(allowed).fullmatch(text)


def projects(text: str) -> None:
    is_project_id(text)
    with suppress(TailrunError):
        check_project(ProjectConfig(text, paths={text: text}, env={text: text}))
    PLACE.sub("", text + "${paths." * 100)


def entries(text: str) -> None:
    raw = text.encode("utf-8", "replace")
    run_id_of(raw)
    run_id_of(orjson.dumps({"run_id": raw.decode()}))


def client(text: str) -> None:
    data = text.encode("utf-8", "replace")
    for size in (len(data) or 1, 100):
        parser = SSEParser()
        for at in range(0, len(data), size):
            parser.feed(data[at : at + size])


def maskers() -> Iterator[Masker]:
    """Yield what hides secrets that hostile output nearly holds: many with an automaton, and few without."""
    secrets = ["a1b2", "aaaa", "A.A-" * 9, "://a:b@c", "tr_secret", "}{}{", "k=v k=v k=w", "../" * 20 + "x"]
    secrets += [f"{'a1' * 8}{n}" for n in range(50)]
    yield Masker([*secrets, *(f"{n:x}-{n}" for n in range(10_000, 10_100))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_values, "HAS_AUTOMATON", False)
        yield Masker(secrets)


MASKERS = list(maskers())


def masked_lines(text: str) -> None:
    """In one line, and in long and short lines; pieces of a line: test_stream_masking_property.py."""
    for masker in MASKERS:
        for size in (len(text) or 1, 1000, 5):
            parts = [text[at : at + size] for at in range(0, len(text), size)]
            LineMasker(masker).lines([Line(Stream.STDOUT, part) for part in parts])


def variables(text: str) -> None:
    for found in (list(secrets_in({text[:64]: text, "TOKEN": text})), list(inside(text))):
        Masker(found)


def sources(text: str) -> None:
    for head in ("", "#", "# coding:", "\n#coding="):
        as_written_here(head + text, "python")
    as_written_here(text, "bash")


READERS = {
    "sources": Reader(sources, ("app/agent/tools/interpreters.py:_CODING",)),
    "variables": Reader(
        variables,
        tuple(
            f"app/stream/secret_values.py:{name}"
            for name in (
                "_WORD",
                "_GLUED",
                "_NUMBER",
                "_FILE",
                "_TOKEN_LIKE",
                "_ADDRESS",
                "_NO_SCHEME",
                "_PAIR",
                "_SCHEME_WORD",
                "_USER_AND",
                "_of_address",
                "_parts",
                "_json_forms",
                "_url_forms",
            )
        ),
    ),
    "masked lines": Reader(
        masked_lines,
        (
            "app/stream/known_values.py:_BEGUN",
            *(f"app/stream/masking.py:{name}" for name in ("_KEY", "_KEY_END", "_LOOKS")),
        ),
    ),
    "levels": Reader(
        levels,
        tuple(
            f"tailrun/process/levels.py:{name}"
            for name in (
                *("_UPPER", "_ANY_CASE", "_APT", "_KLOG", "_RAISED", "_RAISED_BARE", "_CRASHED", "_COMPILER"),
                *("_NOTHING", "_BRACKETED", "_AFTER_TIME", "_TIMED", "_FIELD", "_WORD", "_SEQUENCE"),
                *("_STRING_OR_NESTING", "_NESTED", "_JSON"),
            )
        ),
    ),
    "splitter": Reader(splitter),
    "pod log": Reader(pod_log, ("app/k8s/frames.py:_SRC", "app/k8s/frames.py:_ODD")),
    "plans": Reader(
        plans, tuple(f"app/plan/fenced_plans.py:{name}" for name in ("_OPEN", "_ANY_OPEN", "_LONG_NUMBER"))
    ),
    "log line": Reader(log_line, ("app/db/row_codec.py:_SURROGATE",)),
    "terminal": Reader(terminal, ("tailrun/ansi.py:_SEQUENCE", "tailrun/ansi.py:_COLOUR")),
    "file names": Reader(
        file_names,
        (
            "app/core/names.py:_FORBIDDEN",
            "app/core/names.py:_OWNER",
            "app/routes/files.py:_RANGE",
            "app/routes/files.py:disposition",
        ),
    ),
    "bodies": Reader(
        bodies,
        (
            "app/plan/run_fields.py:_RFC_3339",
            "app/routes/schemas.py:_USER",
            "app/core/names.py:_NAME",
            "app/k8s/profile.py:_QUANTITY",
            "app/k8s/profile.py:image_pattern",
            "app/plan/webhook_url.py:_HOST",
        ),
    ),
    "projects": Reader(
        projects,
        ("app/plan/projects.py:_ID", "app/plan/projects.py:_PATH_NAME", "app/plan/task_values.py:PLACE"),
    ),
    "what tools told": Reader(
        same_everywhere, ("app/plan/transcript.py:_ID", "app/plan/transcript.py:_TIME")
    ),
    "entries": Reader(entries, ("app/redis/queue.py:_RUN_ID",)),
    "client": Reader(client, ("tailrun/sse.py:_LINE_END",)),
}

BOUNDED = {
    "app/stream/masking.py:_BREAK": "one character matches",
    "app/core/paging.py:_CURSOR": "a cursor of the query string, which the server bounds",
    "app/routes/access.py:_REQUEST_ID": "at most 128 characters match",
    "app/runs/services.py:RUN_ID": "of one length",
    "app/routes/docs_page.py:_curl": "paths of our own routes",
    "app/routes/docs_page.py:anchor": "paths of our own routes",
    "app/routes/auth.py:_AUTHORITY": "at most 253 characters match",
    "app/storage/staging.py:KEY": "at most 63 characters match",
    "tailrun/capture/log_file.py:_RUN_ID": "at most 200 characters match",
    "toolbox/transfer.py:_CODE": "at most 64 characters match, in the first bytes of a store's answer",
}
"""What sees text of users without a reader of its own here, and why it is linear."""

OF_THE_OPERATOR = {
    "app/commands/config.py:_LOGIN": "addresses in the settings",
    "app/up/redis_server.py:_VERSION": "what a Redis server says of its version",
    "app/stream/masking.py:_compile": "LOG_MASK_PATTERNS",
    "app/redis/address.py:_SERVER": "REDIS_URL",
    "app/stream/own_secrets.py:_each": "secrets among the settings",
}
"""What sees only what the operator wrote."""

# -- hostile text -----------------------------------------------------------------------------

UNITS = [
    *('"', "'", '""', 't="" ', 't="', "k=v ", "level", 'level="', '"level":', '"level" ', "{", "}", "[", "]"),
    *("<", "(", "|", ":", ":1", "(1,", "1,", ": error", " - ", "a.", "aA.", "A", "Error", "npm ", "E ", "/"),
    *("../", "./", "\\", '\\"', "\\\\", "\x1b", "\x1b[", "\x1b]", "\x1b[0", "\x1b[0m", "\x1b ", "\x1bP"),
    *("\x9b", "\x9d", "\x90", "\x90a", "\x9d\x1b", "\x07", "\x9c", " ", "\t", "\r", "\r\r\n", "\r\n", "\n"),
    *("\0", "\ud800", "\udfff\ud800", "\u0301", "e\u0301", "\u2028", "\ufeff", "~", "`", "~~~\n", "```\n"),
    *("~ ", "` ", "- ", "-", "? ", "&a ", "*a ", "!!a ", "#", "%", "%25", "$", "${", "${paths.", "1", "0."),
    *("*/1,", ",", "=", "data:", "data: x\n", "id:\n", "retry: 1", "error: none ", "-----BEGIN ", "💥", "ß"),
    *(
        "://",
        "://a:",
        "@",
        "tr_",
        " tr_",
        "eyJ",
        ".eyJaaaaaaaa",
        "ghp_",
        "AKIA",
        "bearer ",
        "uthorization: basic ",
    ),
    *(
        "-----BEGIN PRIVATE KEY-----",
        "-----END PRIVATE KEY-----",
        "PRIVATE KEY",
        "a1",
        "a1b2",
        "token: ",
        "a:",
    ),
]
ENDS = ["", '!"`']


def hostile(unit: str, end: str, length: int, start: str = "") -> str:
    return start + unit * (length // len(unit)) + end


def spent_s(read: Callable[[str], object], text: str, repetitions: int = 3) -> float:
    """Return the least CPU time of this thread: other processes do not count."""
    least = float("inf")
    for _ in range(repetitions):
        before = time.thread_time()
        read(text)
        least = min(least, time.thread_time() - before)
    return least


def growth(
    read: Callable[[str], object], make: Callable[[int], str], looks: tuple[int, ...] = (1, 3, 9)
) -> float:
    """Return how much longer `FACTOR` times the text takes; looked at again before it is believed."""
    found = float("inf")
    for repetitions in looks:
        short = spent_s(read, make(SHORT), repetitions)
        found = min(found, spent_s(read, make(SHORT * FACTOR), repetitions) / max(short, LEAST_S))
        if found <= MOST_GROWTH:
            break
    return found


def peak_bytes(read: Callable[[str], object], text: str) -> int:
    tracemalloc.start()
    try:
        read(text)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", READERS)
def test_time_grows_as_the_text_does(name: str) -> None:
    read = READERS[name].read
    read("warm")
    for unit in UNITS:
        for end in ENDS:
            found = growth(read, lambda n, unit=unit, end=end: hostile(unit, end, n))
            assert found <= MOST_GROWTH, f"{unit!r} again and again, then {end!r}: {found:.0f} times as long"


@pytest.mark.parametrize("name", READERS)
def test_memory_grows_as_the_text_does(name: str) -> None:
    read = READERS[name].read
    read("warm")
    for unit in UNITS:
        short = peak_bytes(read, hostile(unit, "", SHORT // 2))
        long = peak_bytes(read, hostile(unit, "", SHORT // 2 * FACTOR))
        assert long <= MOST_GROWTH * max(short, LEAST_BYTES), f"{unit!r}: {short} to {long} bytes"


@pytest.mark.parametrize("name", READERS)
def test_time_grows_as_made_up_text_does(name: str) -> None:
    """Fragments that nobody thought of, one behind the other."""
    fragment = st.lists(st.sampled_from(UNITS) | st.text(max_size=4), min_size=1, max_size=4).map("".join)

    @settings(max_examples=15, deadline=None)
    @given(start=fragment, unit=fragment.filter(bool), end=fragment)
    def holds(start: str, unit: str, end: str) -> None:
        found = growth(READERS[name].read, lambda n: hostile(unit, end, n, start))
        assert found <= MOST_GROWTH, f"{found:.0f} times as long"

    holds()


def test_worse_than_linear_is_found() -> None:
    """The measure itself can fail."""
    assert growth(lambda text: re.search("a*b", text), lambda n: hostile("a", "", n), (3,)) > MOST_GROWTH


# -- no expression without a reader -----------------------------------------------------------


def expressions() -> Iterator[str]:
    """Yield `file:NAME` for each use of `re`, by the name it is given, or the function it stands in."""
    for file in sorted(
        path for part in ("app", "tailrun", "toolbox") for path in (ROOT / part).rglob("*.py")
    ):
        tree = ast.parse(file.read_text())
        for where, node in _placed(tree, "<module>"):
            if isinstance(node, ast.Call) and _is_re(node.func):
                yield f"{file.relative_to(ROOT)}:{where}"


def _placed(node: ast.AST, where: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        inner = where
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = child.name
        elif where == "<module>" and isinstance(child, ast.Assign) and isinstance(child.targets[0], ast.Name):
            inner = child.targets[0].id
        elif where == "<module>" and isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            inner = child.target.id
        yield inner, child
        yield from _placed(child, inner)


def _is_re(func: ast.expr) -> bool:
    named = isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id == "re"
    return named and isinstance(func, ast.Attribute) and func.attr not in {"escape", "error"}


def test_every_expression_is_registered() -> None:
    """A new one is fed with hostile text here, or it is said why it needs none."""
    read = {name for reader in READERS.values() for name in reader.expressions}
    known = read | BOUNDED.keys() | OF_THE_OPERATOR.keys()
    found = set(expressions())
    assert found - known == set(), "give it a reader in READERS"
    assert known - found == set(), "these are gone"


def test_re_is_imported_by_its_name_alone() -> None:
    """Or the test above would not see it."""
    for part in ("app", "tailrun", "toolbox"):
        for file in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert node.module != "re", file
                elif isinstance(node, ast.Import):
                    assert all(name.name != "re" or name.asname is None for name in node.names), file


def test_a_plan_that_is_none_is_told_soon() -> None:
    """The refusal of a long block is bounded too: its message holds no more than a part of it."""
    for unit in ("[", "- a: &b *b\n", "9"):
        for kind in ("yaml", "json"):
            [block] = fenced_blocks(f"```{kind}\n{unit * 50_000}")
            with suppress(Exception):
                read_block(block)
