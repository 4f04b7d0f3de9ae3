"""Client commands on a run's files: ls, get, put."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from tailrun.ansi import one_line
from tailrun.commands.connection import CliError, Json, RunId, Token, Url, connect, resolve
from tailrun.commands.render import size
from tailrun.commands.tables import table

if TYPE_CHECKING:
    from tailrun import Client

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
        run_id = resolve(client, run)
        if output == "-":
            for piece in client.download(run_id, path):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        target = _target(output, path)
        if target.is_file() and not force:
            raise CliError(f"{target} is there already: --force replaces it, -o FILE puts it elsewhere")
        written = save(client, run_id, path, target)
    said = json.dumps({"path": str(target), "size": written}) if as_json else f"{target}  {size(written)}"
    print(one_line(said), file=sys.stdout if target.is_file() else sys.stderr)


def _target(output: str | None, path: str) -> Path:
    """Return where a download goes: into a folder that is named, under the file's own name."""
    name = PurePosixPath(path).name
    target = Path(output or name)
    if target.is_dir() or (output or "").endswith(("/", os.sep)):
        target /= name
    if name in {"", ".."} or not target.parent.is_dir():
        raise CliError(f"There is no folder {target.parent} here" if name else f"{path!r} is no file", 2)
    return target


def save(client: Client, run_id: str, path: str, target: Path) -> int:
    """Write a run's file to `target`, with its executable bit; return its size in bytes.

    A regular file is replaced whole or not at all, keeping its own mode; a link stays and the file
    that it names is replaced; what is no regular file (a device, a pipe) is written into.
    """
    pieces = client.download(run_id, path)
    try:
        first = next(pieces, b"")  # an unknown file must leave nothing behind
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                return file.write(first) + sum(file.write(piece) for piece in pieces)
        place = Path(os.path.realpath(target))
        partial = place.with_name(f".tailrun-{os.getpid()}.part")  # a name that is never too long
        try:
            with partial.open("wb") as file:
                written = file.write(first) + sum(file.write(piece) for piece in pieces)
            _set_mode(partial, place, executable=client.file(run_id, path)["executable"])
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise CliError(f"{target}: {error.strerror}") from error
    return written


def _set_mode(partial: Path, place: Path, *, executable: bool | None) -> None:
    mode = stat.S_IMODE((place if place.exists() else partial).stat().st_mode)
    partial.chmod(mode | ((mode & 0o444) >> 2) if executable else mode)


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
