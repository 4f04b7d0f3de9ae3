"""Parts of a document that programs write: each stands between two comments and is replaced as a whole."""

from __future__ import annotations

from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "docs" / "benchmarks-queue.md"


def replace(name: str, text: str) -> None:
    """Put `text` where the document has the section `name`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = TARGET.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{TARGET.name} has lost the comments of its section {name!r}")
    TARGET.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")
