"""Client commands on the queue and the tokens, and `env` for the shell."""

from __future__ import annotations

import json
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from tailrun.commands.connection import (
    ENV_REDIS_URL,
    CliError,
    Json,
    Token,
    Url,
    connect,
    serving,
    target,
)
from tailrun.commands.render import duration
from tailrun.commands.tables import fields, table

token_app = typer.Typer(help="Make, list and revoke tokens; needs an admin's token.", no_args_is_help=True)


def queue(
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=86_400, help="With --watch: how often.")
    ] = 1.0,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show what waits, what runs, and which workers are alive."""
    clear = watch and not as_json and sys.stdout.isatty()
    with connect(url, token) as client, suppress(KeyboardInterrupt):
        while True:
            depths = client.queue()
            if as_json:
                print(json.dumps(depths, indent=None if watch else 2), flush=True)
            else:
                print("\x1b[H\x1b[2J" if clear else "", end="")
                _print_queue(depths)
            if not watch:
                return
            time.sleep(every)


def _print_queue(depths: dict[str, Any]) -> None:
    oldest = depths["oldest_age_s"]
    fields(
        [
            ("waiting", f"{depths['depth']}" + (f", the oldest for {duration(oldest)}" if oldest else "")),
            ("in flight", str(depths["in_flight"])),
            ("delayed", str(depths["delayed"])),
            ("dead", str(depths["dead"])),
            ("ended", f"{depths['ended_per_min']} in the last minute"),
            ("workers", str(len(depths["workers"])) if depths["workers"] else "none: nothing will run"),
            *([("waiting for", idle)] if (idle := depths.get("idle")) else []),
        ],
    )
    rows = [
        (
            worker["worker_id"],
            str(worker["in_flight"]),
            f"{worker['lease_left_s']:.1f} s",
            f"nothing: {worker['lacks']}" if worker.get("lacks") else "runs",
        )
        for worker in depths["workers"]
    ]
    if rows:
        print()
        table(("WORKER", "IN FLIGHT", "LEASE LEFT", "CLAIMS"), rows)


@token_app.command("create")
def token_create(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose runs the token opens.")],
    *,
    admin: Annotated[
        bool, typer.Option("--admin", help="Scope admin: everybody's runs, queue, tokens.")
    ] = False,
    name: Annotated[str, typer.Option(help="What the token is for.")] = "",
    expires_in: Annotated[int | None, typer.Option(metavar="SECONDS", min=1, help="Its life.")] = None,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Make a token and print it: it is shown this once."""
    with connect(url, token) as client:
        scope = "admin" if admin else "user"
        made = client.create_token(user_id=user, scope=scope, name=name, expires_in_s=expires_in)
    print(json.dumps(made, indent=2) if as_json else made["token"])


@token_app.command("list")
def token_list(*, as_json: Json = False, url: Url = None, token: Token = None) -> None:
    """List tokens, without their secrets."""
    with connect(url, token) as client:
        items = client.tokens()
    if as_json:
        print(json.dumps(items, indent=2))
        return
    columns = ("token_id", "user_id", "scope", "name", "created_at", "expires_at", "revoked_at")
    table(
        [name.upper() for name in columns], [[str(item[name] or "-") for name in columns] for item in items]
    )


@token_app.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(metavar="TOKEN_ID", help="As `token list` shows it.")],
    *,
    as_json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Revoke a token; it opens nothing from now on."""
    with connect(url, token) as client:
        client.revoke_token(token_id)
    print(json.dumps({"revoked": token_id}) if as_json else f"revoked {token_id}")


def env(*, as_json: Json = False, url: Url = None, token: Token = None) -> None:
    """Print API, TOKEN, REDIS_URL and PATH for the shell: eval "$(tailrun env)"."""
    try:
        api, secret = target(url, token)
    except CliError:
        print("null" if as_json else "false")  # or the shell's eval of nothing would be a success
        raise
    programs = str(Path(sys.executable).parent)
    found = {"API": api, "TOKEN": secret}
    here = serving()
    if here is not None and here.url == api.rstrip("/"):
        found |= {"REDIS_URL": here.redis_url, ENV_REDIS_URL: here.redis_url}
    if as_json:
        print(json.dumps(found | {"PATH": programs}, indent=2))
        return
    for name, value in found.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f'export PATH={shlex.quote(programs)}:"$PATH"')
