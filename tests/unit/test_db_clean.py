"""Text on its way into the database."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from app.db.row_codec import clean, stored_bytes, to_json

anything = st.text(st.characters(categories=None, exclude_categories=()))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | anything,
    lambda inner: st.lists(inner) | st.dictionaries(anything, inner),
)


@given(anything)
def test_cleaned_text_can_be_stored(value: str) -> None:
    """One character for one, nothing else changed."""
    cleaned = clean(value)
    assert "\x00" not in cleaned
    cleaned.encode()
    assert len(cleaned) == len(value)
    assert all(new in (old, "\ufffd") for old, new in zip(value, cleaned, strict=True))
    assert stored_bytes(value) == len(cleaned.encode())


@given(json_values)
def test_any_value_becomes_json_that_can_be_stored(value: object) -> None:
    encoded = to_json(value)
    assert "\x00" not in encoded
    assert to_json(orjson.loads(encoded)) == encoded


def test_json_keeps_nul_as_an_escape() -> None:
    assert orjson.loads(to_json({"a": "\x00"})) == {"a": "\x00"}
