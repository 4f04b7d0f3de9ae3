"""The file tools: write, read, delete and list the run's files without starting a program."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Sequence

from app.agent.tools.program import ToolContext, ToolOutcome
from app.core.models import Step
from app.plan.steps import decode_content
from app.storage.workspace import FileInfo
from tailrun.process.lines import Level, Line, Stream

SHOWN_BYTES = 64 * 1024
"""How much of a file `file_read` prints; the rest is there for download."""

_BATCH = 500
_BASE64_LINE_BYTES = 57  # 76 characters, as base64(1) and MIME print


async def write_file(bench: ToolContext, step: Step) -> ToolOutcome:
    """Store a file, whole or not at all."""
    content = decode_content(step.args["content"], step.args["encoding"])
    file = await bench.workspace.write(step.args["path"], content)
    return ToolOutcome(result=_describe(file), files=(file,))


async def read_file(bench: ToolContext, step: Step) -> ToolOutcome:
    """Print a file line by line: as text, or in base64 if it is none."""
    file = await bench.workspace.stat(step.args["path"])
    head = b"".join([piece async for piece in bench.workspace.read(file.path, 0, SHOWN_BYTES)])
    text = _as_text(head, whole=file.size <= len(head))
    await _print(bench, step, _base64_lines(head) if text is None else _text_lines(text))
    if file.size > len(head):
        note = f"{file.path}: {len(head)} of {file.size} bytes are shown; download the file for the rest"
        await bench.log.say(Level.INFO, note, step.id)
    return ToolOutcome(result={**_describe(file), "encoding": "base64" if text is None else "utf-8"})


async def delete_file(bench: ToolContext, step: Step) -> ToolOutcome:
    await bench.workspace.delete(step.args["path"])
    return ToolOutcome(result={"path": step.args["path"]})


async def list_files(bench: ToolContext, step: Step) -> ToolOutcome:
    """Print size and path of each file."""
    files = await bench.workspace.list(step.args["prefix"])
    await _print(bench, step, [f"{file.size:>12}  {file.path}" for file in files])
    return ToolOutcome(result={"files": len(files), "size": sum(file.size for file in files)})


def _describe(file: FileInfo) -> dict[str, str | int]:
    return {"path": file.path, "size": file.size}


def _as_text(head: bytes, *, whole: bool) -> str | None:
    """Decode; a character that the cut went through is left out. None: not a text."""
    if b"\0" in head:
        return None
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        return None


def _text_lines(text: str) -> list[str]:
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _base64_lines(content: bytes) -> list[str]:
    pieces = range(0, len(content), _BASE64_LINE_BYTES)
    return [base64.b64encode(content[at : at + _BASE64_LINE_BYTES]).decode() for at in pieces]


async def _print(bench: ToolContext, step: Step, lines: Sequence[str]) -> None:
    for at in range(0, len(lines), _BATCH):
        await bench.log.lines([Line(Stream.STDOUT, text) for text in lines[at : at + _BATCH]], step.id)
