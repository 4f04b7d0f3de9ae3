"""What a model is told before the first word of the user: the packaged text, then the run's own.

The texts are Markdown files in `prompts/`, reviewed like code. They are rendered once a run and kept with
its first call, so that a new release in the middle of a run changes nothing in what its model has read.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "prompts"
_NETWORK = {
    "none": "Programs reach no network.",
    "internet": "Programs reach the internet.",
    "unknown": "Programs may or may not reach a network: see before you rely on it.",
}


def system_prompt(*, instructions: str = "", network: str | None = None, schema: bool = False) -> str:
    """Return the system text of a run.

    `network`: `none` or `internet`, None where that is unknown. `schema`: whether the result is held to one.
    """
    finish = _text("finish_schema" if schema else "finish_text")
    text = _text("system").replace("{network}", _NETWORK[network or "unknown"]).replace("{finish}", finish)
    return (
        f"{text}\n\n# Instructions for this run\n\n{instructions.strip()}" if instructions.strip() else text
    )


@cache
def _text(name: str) -> str:
    return (_FOLDER / f"{name}.md").read_text(encoding="utf-8").strip()
