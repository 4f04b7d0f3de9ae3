"""Which runs were seen, in memory that is bounded however many there are.

A Bloom filter: it never forgets a run, and takes one in some ten thousand for seen that was not. Each one
hashes with a key of its own, so that another look, with another filter, mistakes others.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from hashlib import blake2b

_BITS_A_RUN = 64
_FEWEST_BITS, _MOST_BITS = 1 << 16, 1 << 27
"""8 kB, and 16 MB: enough for two million runs; with ten times as many one in twenty is mistaken."""
_HASHES, _HASH_BYTES = 4, 4


class SeenRuns:
    """Runs by their ids; `expected` says how many there will be, about."""

    def __init__(self, expected: int) -> None:
        wanted = min(max(expected * _BITS_A_RUN, _FEWEST_BITS), _MOST_BITS)
        self._mask = (1 << (wanted - 1).bit_length()) - 1
        self._bits = bytearray((self._mask + 1) // 8)
        self._key = secrets.token_bytes(16)

    def add(self, run_id: str) -> None:
        """Note a run."""
        for place in self._places(run_id):
            self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, run_id: str) -> bool:
        """Whether it was noted; seldom True though it was not, and never False though it was."""
        return all(self._bits[place >> 3] >> (place & 7) & 1 for place in self._places(run_id))

    def _places(self, run_id: str) -> Iterable[int]:
        digest = blake2b(run_id.encode(), digest_size=_HASHES * _HASH_BYTES, key=self._key).digest()
        parts = (digest[at : at + _HASH_BYTES] for at in range(0, len(digest), _HASH_BYTES))
        return (int.from_bytes(part) & self._mask for part in parts)
