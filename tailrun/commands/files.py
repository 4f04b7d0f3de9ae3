"""Client commands on a run's files: ls, get, put."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tailrun.ansi import one_line
from tailrun.commands.connection import CliError, Json, RunId, Token, Url, connect, resolve
from tailrun.commands.render import size
from tailrun.commands.tables import table

app = typer.Typer(help="List, download and upload a run's files.", no_args_is_help=True)


@app.command("ls")
def ls(run: RunId, *, as_json: Json = False, url: Url = None, token: Token = None) -> None:
    """List a run's files."""
    with connect(url, token) as client:
        items = client.files(resolve(client, run))
    if as_json:
        print(json.dumps(items, indent=2))
        return
    table(("FILE", "SIZE"), [(item["path"], size(item["size"])) for item in items])


@app.command("get")
def get(
    run: RunId,
    path: Annotated[str, typer.Argument(help="The file's path in the run's workspace.")],
    *,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Where to put it; - is stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Download a file, by default into this folder under its own name."""
    with connect(url, token) as client:
        pieces = client.download(resolve(client, run), path)
        if output == "-":
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        target = Path(output or Path(path).name)
        if target.exists() and not force:
            raise CliError(f"{target} is there already: --force replaces it, -o FILE puts it elsewhere")
        written = _write(target, pieces)
    print(
        json.dumps({"path": str(target), "size": written})
        if as_json
        else one_line(f"{target}  {size(written)}")
    )


def _write(target: Path, pieces: Iterator[bytes]) -> int:
    """Write a file, whole or not at all."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        first = next(pieces, b"")  # an unknown file must leave nothing behind
        with partial.open("wb") as file:
            written = file.write(first) + sum(file.write(piece) for piece in pieces)
        partial.replace(target)
    except OSError as error:
        raise CliError(f"{target}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return written


@app.command("put")
def put(
    run: RunId,
    source: Annotated[Path, typer.Argument(help="A local file.")],
    path: Annotated[
        str | None, typer.Argument(help="Its path in the run's workspace; by default its name.")
    ] = None,
    *,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Upload a file into a run's workspace."""
    if not source.is_file():
        raise CliError(f"{source} is no file", 2)
    with connect(url, token) as client:
        stored = client.upload(resolve(client, run), path or source.name, source)
    print(json.dumps(stored, indent=2) if as_json else one_line(f"{stored['path']}  {size(stored['size'])}"))
