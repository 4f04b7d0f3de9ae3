"""Where a command meets its terminal, pipe or file: what is printed gets out, what goes wrong is a line.

The one place in which an error becomes what the user reads. A command raises; nothing here knows
which command it was. With TAILRUN_DEBUG=1, and for servers, the traceback is shown instead.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO, cast

from tailrun.ansi import harmless
from tailrun.commands.connection import CliError

_ESCAPING = "tailrun.escape"
_EXPECTED = (OSError, ValueError, ArithmeticError, RecursionError, MemoryError)
"""What a user's files, numbers and machine can cause. Anything else is a fault of ours."""


def call(command: Callable[[], object]) -> None:
    """Run a command to the end of its output; a refusal is one line on stderr and an exit code."""
    _prepare_streams()
    try:
        try:
            command()
        finally:  # also before a SystemExit: what does not get out must not look like a success
            sys.stdout.flush()
    except BrokenPipeError:
        _settle_stdout()
        sys.exit(1)  # whoever read has read enough
    except Exception as error:
        if _tracebacks and not isinstance(error, CliError):
            raise
        message, code = explained(error)
        _settle_stdout()
        with suppress(OSError, ValueError):
            print(f"tailrun: {harmless(message, colours=False)}", file=sys.stderr, flush=True)
        sys.exit(code)


_tracebacks = os.environ.get("TAILRUN_DEBUG", "0") not in {"", "0"}


def show_tracebacks() -> None:
    """Let what ends this process unexpectedly keep its traceback: it is for whoever runs the server."""
    global _tracebacks  # noqa: PLW0603 - one process, one command
    _tracebacks = True


def explained(error: Exception) -> tuple[str, int]:
    """Return what to tell the user of an error, and the exit code."""
    if isinstance(error, CliError):
        return str(error), error.code
    if (said := _said_by_client(error)) is not None:
        return said, 1
    if isinstance(error, UnicodeError):
        return _not_text(error), 2
    if isinstance(error, OSError):
        return _said_by_system(error), 1
    kind = type(error).__name__
    if isinstance(error, _EXPECTED):
        return str(error) or kind, 1
    return f"internal error: {kind}: {error} (TAILRUN_DEBUG=1 shows where; please report it)", 70


def _said_by_client(error: Exception) -> str | None:
    """Return what the client package has to say; it is imported only where it is used."""
    client = sys.modules.get("tailrun.errors")
    if client is None or not isinstance(error, client.TailrunError):
        return None
    hint = ". Is it running? `tailrun up` starts one" if isinstance(error, client.Unreachable) else ""
    return f"{error}{hint}"


def _said_by_system(error: OSError) -> str:
    what = error.strerror or str(error) or type(error).__name__
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' → '.join(names)}: {what}" if names else what


def _not_text(error: UnicodeError) -> str:
    if isinstance(error, UnicodeEncodeError):
        around = error.object[max(0, error.start - 20) : error.end + 20]
        return f"{around!a} holds bytes that are not UTF-8, and Tailrun takes text"
    if isinstance(error, UnicodeDecodeError):
        return f"this is not {error.encoding.upper()}: {error.object[error.start : error.end + 20]!r}"
    return str(error)


def _prepare_streams() -> None:
    """Let every character out, whatever a stream's encoding: as an escape that JSON reads back."""
    codecs.register_error(_ESCAPING, escaped)
    sys.stdin = _there(sys.stdin, "r")
    sys.stdout, sys.stderr = _there(sys.stdout, "w"), _there(sys.stderr, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPING)


def escaped(error: UnicodeError) -> tuple[str, int]:
    """Handle what an encoding has no character for (`codecs.register_error`)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    text = "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
    return text, error.end


def _there(stream: TextIO | None, mode: str) -> TextIO:
    """Return a stream; one that the caller closed (`>&-`) swallows, and gives nothing."""
    if stream is not None:
        return stream
    return cast("TextIO", open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123 - to the end


def _settle_stdout() -> None:
    """Print what stdout still holds, or drop it: at its end the interpreter would try, and fail, again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
