r"""Lines as frames: one JSON object per line of the wrapper's stdout, 16 KiB at the most.

The container runtime splits longer lines, and a torn frame could not be read. What a program
prints need not be text nor have line ends, so a line may take several frames:

    {"n":7,"s":"o","t":1763690400123456,"d":"one whole line"}
    {"n":8,"s":"o","t":…,"d":"Password: ","p":1}     part of a line, which continues
    {"n":9,"s":"o","t":…,"d":"accepted"}             its end
    {"n":10,"s":"e","t":…,"d":"no line end","u":1}   the program's last words, without `\n`

The texts of a stream's frames up to one without `p`, joined, are the line, to the byte (what is
no UTF-8 became U+FFFD). `n` counts all frames, so a reader sees a hole; `t` is when the text was
read, in microseconds since the epoch. Speed matters here: one join and one comprehension a read.
"""

from __future__ import annotations

import codecs
from _json import encode_basestring as quote  # json itself costs 10 ms of start-up: it brings in `re`

FRAME_BYTES = 16_000
"""The longest frame, with its line end; runtimes split lines at 16 384."""

PART_CHARS = 12_288
"""How much of a line is in one frame, where no escape makes it longer."""

_AROUND = 100  # more than the bytes of a frame around its text
_SURELY_FITS = (FRAME_BYTES - _AROUND) // 6  # characters; the longest escape has six bytes

_decoder = codecs.getincrementaldecoder("utf-8")


class Frames:
    """Numbers frames and keeps them until `take`."""

    def __init__(self) -> None:
        self._n = 0
        self._waiting: list[str] = []

    def add(self, rest: str) -> None:
        """Add a frame; `rest` is the JSON that follows its number, without the closing brace."""
        self._n += 1
        self._waiting.append(f'{{"n":{self._n},{rest}}}\n')

    def say(self, kind: str, message: str) -> None:
        """Add news of the stage: `synced`, `failed`, or `stopped` (what was left in the background)."""
        self.add(f'"k":{quote(kind)},"m":{quote(message[:2000])}')

    def add_lines(self, before: str, lines: list[str]) -> None:
        """Add a frame for each of `lines`, all of them short; `before` is written between number and text."""
        numbered = enumerate(lines, self._n + 1)
        self._waiting.append("".join([f'{{"n":{n},{before}{quote(line)}}}\n' for n, line in numbered]))
        self._n += len(lines)

    def take(self) -> bytes:
        """Return what was added since the last call."""
        taken = "".join(self._waiting).encode()
        self._waiting.clear()
        return taken


class Stream:
    """One pipe of the program: bytes in, frames out. Holds no more than one frame's text back."""

    def __init__(self, frames: Frames, letter: str) -> None:
        self._frames = frames
        self._letter = letter
        self._decode = _decoder("replace").decode
        self._rest = ""
        self._open = False
        self.lines = 0
        self.bytes = 0

    @property
    def held(self) -> bool:
        """Whether the beginning of a line waits for its end."""
        return bool(self._rest)

    def feed(self, data: bytes, stamp: int) -> bool:
        """Add what was read at `stamp`; return whether a line begins in it that is held back."""
        self.bytes += len(data)
        began = not self._rest
        lines = (self._rest + self._decode(data)).split("\n")
        self._rest = lines.pop()
        before = self._before(stamp)
        if lines:
            self.lines += len(lines)
            self._open = False
            if len(max(lines, key=len)) <= _SURELY_FITS:
                self._frames.add_lines(before, lines)
            else:
                for line in lines:
                    self._cut(before, line, "")
        if len(self._rest) >= PART_CHARS:
            self.flush(stamp)
        return self.held and (began or bool(lines))

    def flush(self, stamp: int) -> None:
        """Send the beginning of a line; its end comes in later frames."""
        if self._rest:
            self._cut(self._before(stamp), self._rest, ',"p":1')
            self._rest, self._open = "", True

    def end(self, stamp: int) -> None:
        """Add what the program left without a line end."""
        self._rest += self._decode(b"", True)
        if self._rest or self._open:
            self.lines += 1
            self._cut(self._before(stamp), self._rest, ',"u":1')
            self._rest, self._open = "", False

    def _before(self, stamp: int) -> str:
        return f'"s":"{self._letter}","t":{stamp},"d":'

    def _cut(self, before: str, line: str, last: str) -> None:
        """Add the frames of one line, the last of them marked with `last`."""
        while True:
            quoted = quote(piece := line[:PART_CHARS])
            while len(quoted.encode()) > FRAME_BYTES - _AROUND:
                quoted = quote(piece := piece[: len(piece) // 2])
            line = line[len(piece) :]
            self._frames.add(before + quoted + (',"p":1' if line else last))
            if not line:
                return
