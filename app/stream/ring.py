"""The merge by sequence: a run's recent events, each once and in order, whatever arrives.

Pure: no I/O and no clock, so that a property test can drive it through any interleaving.
`Ring.offer` takes what pub/sub brought, `Ring.fill` what was read from tail or database;
both append only what follows `last` directly. A message beyond a hole waits in the stash
until the hole is filled. Readers are cursors: one at `floor` or above reads on from here, one
below pages from history first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import orjson

from app.core.events import SEQ_AT, Entry, seq_of

_END = b'"type":"end"'
_RANGES = frozenset({"gap", "truncated"})


def is_end(raw: bytes) -> bool:
    """Return whether an encoded event is the last of its run."""
    return raw.startswith(_END, raw.find(b",", SEQ_AT) + 1)


def follows(entry: Entry, last: int) -> bool:
    """Return whether `entry` continues a stream that is at `last`: next seq, or a range over it."""
    seq, raw = entry
    if seq <= last + 1:
        return seq == last + 1
    body = orjson.loads(raw)
    return body.get("type") in _RANGES and body.get("from", seq) <= last + 1


def contiguous(entries: Iterable[Entry], last: int) -> list[Entry]:
    """Return the entries that continue a stream at `last`, up to the first hole; older ones are dropped."""
    kept: list[Entry] = []
    for entry in entries:
        if entry[0] <= last:
            continue
        if not follows(entry, last):
            break
        kept.append(entry)
        last = entry[0]
    return kept


class Ring:
    """Recent events of one run, bounded in number and bytes; at least the newest one stays.

    `last` is the seq up to which everything was seen, `floor` the lowest cursor that can be
    served from here. Until `start` both are None: what arrives goes to the stash.
    """

    def __init__(self, lines: int, size: int) -> None:
        self.last: int | None = None
        self.floor = 0
        self.end_seq: int | None = None
        self._max_lines, self._max_size = lines, size
        self._seqs: list[int] = []
        self._raws: list[bytes] = []
        self._sizes: list[int] = []  # running total up to and with each entry
        self._head = 0  # entries before it are dropped; the lists are cut now and then
        self._stash: list[Entry] = []
        self._stash_size = 0

    def start(self, last: int) -> None:
        """Begin after `last`: what lies before comes from history."""
        self.last = self.floor = last

    @property
    def holed(self) -> bool:
        """Whether events wait for a hole to be filled."""
        return bool(self._stash)

    def offer(self, message: bytes) -> bool:
        """Take a pub/sub message; return False when there is a hole before some of it."""
        entries = [(seq_of(raw), raw) for raw in message.split(b"\n") if raw]
        if self._stash or self.last is None:
            self._put_away(entries)
            return False
        left = self._append(entries)
        if left:
            self._put_away(left)
        return not left

    def fill(self, entries: Sequence[Entry]) -> None:
        """Take entries read from tail or database, then what the stash has after them."""
        self._append(entries)
        if self._stash:
            stash, self._stash, self._stash_size = sorted(self._stash, key=_seq), [], 0
            self._put_away(self._append(stash))

    def take(self, cursor: int, size: int) -> list[Entry]:
        """Return what follows `cursor`, at most `size` bytes but at least one entry; [] if nothing does."""
        start = bisect_right(self._seqs, cursor, self._head)
        if start == len(self._seqs):
            return []
        limit = self._sizes[start] - len(self._raws[start]) + size
        end = max(bisect_right(self._sizes, limit, start), start + 1)
        return list(zip(self._seqs[start:end], self._raws[start:end], strict=True))

    def _append(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Append up to the first hole and return the rest."""
        last, total = self.last or 0, self._sizes[-1] if self._sizes else 0
        for index, entry in enumerate(entries):
            seq, raw = entry
            if seq != last + 1:
                if seq <= last:
                    continue
                if not follows(entry, last):
                    self._shrink()
                    return entries[index:]
            last = self.last = seq
            total += len(raw)
            self._seqs.append(seq)
            self._raws.append(raw)
            self._sizes.append(total)
            if is_end(raw):
                self.end_seq = seq
        self._shrink()
        return ()

    def _shrink(self) -> None:
        head, count = self._head, len(self._seqs)
        if not count:
            return
        floor_size = self._sizes[-1] - self._max_size
        head = max(head, count - self._max_lines)
        if floor_size > 0:
            head = max(head, bisect_right(self._sizes, floor_size))
        head = min(head, count - 1)
        if head == self._head:
            return
        self.floor, self._head = self._seqs[head - 1], head
        # Cutting moves the whole list, so it is done when half of it is waste; bytes are freed at once.
        if head > count - head:
            del self._seqs[:head], self._raws[:head], self._sizes[:head]
            self._head = 0
        else:
            for index in range(head - 1, -1, -1):
                if not self._raws[index]:
                    break
                self._raws[index] = b""

    def _put_away(self, entries: Sequence[Entry]) -> None:
        """Keep entries for later; over the bound the stash is emptied, history has them all."""
        last = self.last or 0
        self._stash += [entry for entry in entries if entry[0] > last]
        self._stash_size += sum(len(raw) for _, raw in entries)
        if self._stash_size > self._max_size:
            self._stash, self._stash_size = self._stash[-1:], 0


def _seq(entry: Entry) -> int:
    return entry[0]
