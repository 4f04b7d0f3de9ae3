"""What is secret in a row: encrypted with `PROJECTS_KEY`, and bound to the row it stands in.

Fernet (AES-128-CBC and HMAC-SHA256), with several keys for a change of keys: the first one seals,
each of them opens. The row's id is sealed in, so that a text moved to another row opens nothing.
"""

from __future__ import annotations

from typing import Any, cast

import orjson

from app.errors import Unavailable


class Seal:
    """Seals and opens small JSON objects. `keys`: `PROJECTS_KEY`; None: nothing secret can be kept."""

    def __init__(self, keys: str | None) -> None:
        self._keys = [key.strip() for key in keys.split(",")] if keys else []

    def close(self, row: str, content: dict[str, Any]) -> str:
        """Return `content` as a text for this row.

        Raises:
            Unavailable: code `no_projects_key`.
        """
        return self._fernet().encrypt(orjson.dumps({"row": row, "content": content})).decode()

    def open(self, row: str, sealed: str) -> dict[str, Any]:
        """Return what was sealed for this row.

        Raises:
            Unavailable: code `no_projects_key`, or `wrong_projects_key` where no key fits.
        """
        from cryptography.fernet import InvalidToken  # noqa: PLC0415 - dear to import, rarely needed

        try:
            body = cast("dict[str, Any]", orjson.loads(self._fernet().decrypt(sealed)))
        except InvalidToken:
            body = {}
        if body.get("row") != row:
            raise Unavailable(
                f"What project {row!r} keeps secret can't be opened: PROJECTS_KEY is not the key that "
                "sealed it. Put that key behind the new one, after a comma.",
                code="wrong_projects_key",
            )
        return body["content"]

    def _fernet(self) -> Any:
        from cryptography.fernet import Fernet, MultiFernet  # noqa: PLC0415

        if not self._keys:
            raise Unavailable(
                "Secrets of projects can't be kept or read: PROJECTS_KEY is not set here. `tailrun up` makes "
                "one by itself; elsewhere give API and workers the same key (docs/tasks.md).",
                code="no_projects_key",
            )
        return MultiFernet([Fernet(key) for key in self._keys])
