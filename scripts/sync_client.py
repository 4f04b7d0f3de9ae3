"""Write tailrun/client.py, the synchronous image of tailrun/async_client.py, or check that it is one.

The two differ in words only, so a table of words makes one from the other. A rule that matches nothing
and a word of asyncio that no rule takes away are errors: the table stays as small as the difference.

Run it after a change of tailrun/async_client.py. `--check` writes nothing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tailrun" / "async_client.py"
IMAGE = ROOT / "tailrun" / "client.py"
HEADER = '''"""The client for programs without asyncio.

Generated from `async_client.py` by `scripts/sync_client.py`: change that one, then run the script.
"""
'''
RULES = [
    (r"^import asyncio\n", ""),
    (r"\bawait asyncio\.to_thread\(([\w.]+), ", r"\1("),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\bawait ", ""),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\basync(contextmanager)\b", r"\1"),
    (r"\bAsync(Client|Generator|Iterator)\b", r"\1"),
    (r"\ba(close|closing|iter_bytes|read)\b", r"\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\bfor (\w+) in (.+):\n +yield \1\n", r"yield from \2\n"),
    (r"\bOne per event loop\.", "Not for use by several threads at once."),
]
"""Patterns and what stands for them in the image, in the order in which they apply."""
LEFT = re.compile(
    r"\b\w*(?:async|await)\w*|\b(?:__)?a(?:iter|next|read|write|send|throw|clos|enter|exit)\w*", re.IGNORECASE
)
"""What must not remain: words of asyncio, and methods that have an `a` before the synchronous one's name."""


def image(source: str) -> str:
    """Return the synchronous client that belongs to the text of the asynchronous one."""
    _, start, body = source.partition("\nfrom __future__ ")
    for pattern, replacement in RULES:
        body, count = re.subn(pattern, replacement, body, flags=re.MULTILINE)
        if count == 0:
            raise ValueError(f"The rule {pattern!r} matches nothing: remove it from RULES")
    left = LEFT.findall(body)
    if left:
        raise ValueError(f"No rule takes away {', '.join(sorted(set(left)))}: add one to RULES")
    return formatted(HEADER + start + body)


def formatted(text: str) -> str:
    """Let ruff lay out the text as it does the rest of the package."""
    command = [sys.executable, "-m", "ruff", "format", "--quiet", "--stdin-filename", str(IMAGE), "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise ValueError(f"ruff cannot format the image: {done.stderr}")
    return done.stdout


def main() -> int:
    """Write the image; with --check only say whether it is the one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only check")
    checking: bool = parser.parse_args().check
    made = image(SOURCE.read_text(encoding="utf-8"))
    if checking:
        if IMAGE.read_text(encoding="utf-8") == made:
            return 0
        print(f"{IMAGE.name} is not the image of {SOURCE.name}: run scripts/sync_client.py", file=sys.stderr)
        return 1
    IMAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
