"""Work that is done again and again, and how long to wait between tries."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter, in seconds: random between 0 and base · 2ⁿ, at most `cap_s`.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_s: float
    cap_s: float
    dice: Random

    def delay_us(self, retries: int) -> int:
        """Return the wait before the retry that follows `retries` earlier ones."""
        ceiling = min(self.cap_s, self.base_s * 2 ** min(retries, 32))
        return int(self.dice.uniform(0, ceiling) * 1_000_000)
