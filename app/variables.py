"""Which environment variables a run may set: checked at the POST, and again where tools start."""

from __future__ import annotations

import re
from collections.abc import Mapping

from app.errors import Unprocessable

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

RESERVED = frozenset({"HOME", "PATH", "TMPDIR"})
"""Names that Tailrun sets itself, beside all that begin with `TAILRUN_`."""


def check_env(extra: Mapping[str, str]) -> None:
    """Refuse reserved names, what is no name, and values with NUL.

    Raises:
        Unprocessable: names the variable and what is wrong with it.
    """
    for name, value in extra.items():
        if not _NAME.fullmatch(name):
            raise Unprocessable(f"env: {name[:64]!r} is not the name of a variable: use letters, digits, _.")
        if name in RESERVED or name.startswith("TAILRUN_"):
            raise Unprocessable(f"env: {name[:64]} is set by Tailrun itself; choose another name.")
        if "\0" in value:
            raise Unprocessable(f"env: the value of {name[:64]} holds a NUL character.")
