"""What a run's result has to be like: a JSON Schema of the user's, read and held to without trusting it.

Its regular expressions run in time that is linear in the text, and its references lead nowhere but into
itself: a schema is a small program that others wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema_rs

_MOST_ERRORS = 5
_MOST_CHARS = 1_000


class ResultSchema:
    """A schema that results are held to.

    Raises:
        ValueError: it is none; the message says why.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            self._validator = jsonschema_rs.validator_for(
                dict(schema), pattern_options=jsonschema_rs.RegexOptions(), retriever=_nothing
            )
        except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
            raise ValueError(f"is no JSON Schema: {str(error).partition(chr(10))[0]}") from error

    def errors(self, result: Any) -> str:
        """Return what is wrong with a result, empty if nothing is."""
        found = list[str]()
        for error in self._validator.iter_errors(result):
            place = "/".join(map(str, error.instance_path)) or "the result"
            found.append(f"{place}: {error.message}")
            if len(found) == _MOST_ERRORS:
                break
        return "; ".join(found)[:_MOST_CHARS]


def _nothing(uri: str) -> Any:
    raise ValueError(f"{uri[:200]} is outside of the schema")
