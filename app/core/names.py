"""Names of files: the one place that says which paths and keys are allowed.

Whatever comes from outside (URLs, plans, keys in a bucket, names that tools made up) goes
through here before it reaches a disk or a store. One path has one form, so that a file
can't be reached, counted or limited under two names.

Which environment variables a run may set: checked at the POST, and again where tools start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from app.core.errors import Unprocessable

MAX_PART_BYTES = 255
"""The longest name that common file systems take (NAME_MAX)."""

MAX_PARTS = 64
"""How deep files may be nested: each part of a path costs a system call at every look."""

_MAX_KEY_BYTES = 1024  # the longest key that S3 takes
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, bytes that are no UTF-8
_OWNER = re.compile(r"[A-Za-z0-9._@-]{1,64}")

RESERVED = ".tailrun"
"""The folder of a run's files that is Tailrun's own: neither listed, nor served, nor written for anyone."""

MAX_PATH_BYTES = _MAX_KEY_BYTES - len("users//runs//") - 2 * 64
"""The part of S3's longest key that is left for a path, whoever the user and whatever the run."""


class InvalidPath(Unprocessable):
    """A path can't be used; `reason` says why, for whoever words the message anew."""

    code = "invalid_path"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"The path {path[:200]!r} can't be used: {reason}.")
        self.reason = reason


def normalise(path: str) -> str:
    """Return the one form of `path` (`a//b/./c` → `a/b/c`).

    Raises:
        Unprocessable: it is empty, absolute, names a folder, holds `..`, a backslash or a
            control character, is in `RESERVED`, or is too long or too deep (`MAX_PATH_BYTES`,
            `MAX_PART_BYTES` per part, `MAX_PARTS`).
    """
    parts = _parts(path)
    if not parts or path.endswith(("/", "/.")):
        raise InvalidPath(path, "it names no file")
    _check_length(path, parts)
    return "/".join(parts)


def normalise_prefix(prefix: str) -> str:
    """Return the one form of a prefix; `""` and `"."` mean all files, `a/` those in folder `a`.

    Raises:
        Unprocessable: as `normalise`.
    """
    parts = _parts(prefix)
    _check_length(prefix, parts)
    folder = bool(parts) and prefix.endswith(("/", "/."))
    return "/".join(parts) + ("/" if folder else "")


def is_normal(path: str) -> bool:
    """Whether `path` is a file's one form; what tools or strangers named otherwise is not served."""
    try:
        return normalise(path) == path
    except Unprocessable:
        return False


def is_text(text: str) -> bool:
    """Whether a text can be stored and sent: a name of the disk may hold bytes that are no UTF-8."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def run_key(user_id: str, run_id: str) -> str:
    """Return where a run's files are: `users/{user_id}/runs/{run_id}`.

    Raises:
        Unprocessable: an id is not 1 to 64 letters, digits, `.`, `_`, `@` or `-`.
    """
    return f"users/{_owner(user_id)}/runs/{_owner(run_id)}"


def private_key(user_id: str, run_id: str) -> str:
    """Return where Tailrun keeps what belongs to a run and is none of its files; raises as `run_key`."""
    return f"{run_key(user_id, run_id)}/{RESERVED}"


def parents(path: str) -> list[str]:
    """Return the folders that `path` is in, outermost first (`a/b/c` → `a`, `a/b`)."""
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _owner(part: str) -> str:
    if not _OWNER.fullmatch(part) or part in {".", ".."}:
        raise Unprocessable(
            f"The id {part[:64]!r} can't own files: use 1 to 64 letters, digits, '.', '_', '@' or '-'.",
            code="invalid_path",
        )
    return part


def _parts(path: str) -> list[str]:
    if path.startswith("/"):
        raise InvalidPath(path, "it is absolute; give it relative to the workspace")
    if "\\" in path:
        raise InvalidPath(path, "it holds a backslash; separate folders with '/'")
    if _FORBIDDEN.search(path):
        raise InvalidPath(path, "it holds a control character or is not Unicode")
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise InvalidPath(path, "it holds '..'")
    if parts and parts[0].casefold() == RESERVED:  # some file systems know no case
        raise InvalidPath(path, f"the folder {RESERVED} is Tailrun's own")
    return parts


def _check_length(path: str, parts: list[str]) -> None:
    if len(parts) > MAX_PARTS:
        raise InvalidPath(path, f"it is nested deeper than {MAX_PARTS} parts")
    sizes = [len(part.encode()) for part in parts]
    if any(size > MAX_PART_BYTES for size in sizes):
        raise InvalidPath(path, f"one of its parts is longer than {MAX_PART_BYTES} bytes")
    if sum(sizes) + len(sizes) - 1 > MAX_PATH_BYTES:
        raise InvalidPath(path, f"it is longer than {MAX_PATH_BYTES} bytes")


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

RESERVED_VARIABLES = frozenset({"HOME", "TMPDIR"})
"""Names that Tailrun sets itself, beside all that begin with `TAILRUN_`."""

_PATH_AS_IT_IS = frozenset({"", "$PATH", "${PATH}"})


def check_env(extra: Mapping[str, str]) -> None:
    """Refuse reserved names, what is no name, and values with NUL.

    Raises:
        Unprocessable: names the variable and what is wrong with it.
    """
    for name, value in extra.items():
        if not _NAME.fullmatch(name):
            raise Unprocessable(f"env: {name[:64]!r} is not the name of a variable: use letters, digits, _.")
        if name in RESERVED_VARIABLES or name.startswith("TAILRUN_"):
            raise Unprocessable(f"env: {name[:64]} is set by Tailrun itself; choose another name.")
        if "\0" in value:
            raise Unprocessable(f"env: the value of {name[:64]} holds a NUL character.")


def path_with(asked: str, path: str) -> str:
    """Put the folders that a run's `PATH` asks for before those of `path`, which always follow."""
    folders = [folder for folder in asked.split(":") if folder not in _PATH_AS_IT_IS]
    return ":".join(dict.fromkeys([*folders, *path.split(":")]))
