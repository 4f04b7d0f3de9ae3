"""Tokens: who may call the API. Only a hash of each secret is kept.

The secrets are random and long (256 bits), so a plain SHA-256 is enough, and looking one up by its
hash tells an attacker's clock nothing about the secret.

A stream token is worth as much as the token that made it: it opens nothing once that one has
been revoked or has expired.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, FromClause, delete, exists, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.core.errors import Conflict
from app.db.engine import Database
from app.db.run_create import KEY_REUSED
from app.db.tables import tokens

Scope = Literal["user", "admin", "stream"]
_PREFIX = "tr_"
"""Lets secret scanners and people recognise a leaked token."""

_AT_ONCE = 10_000
"""Ids in one query; the databases take three times as many parameters."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret. Scope "stream" reads the stream of `run_id` and nothing else.

    `made_by` is the id of the token that made a stream token; None where that was none of these.
    """

    token_id: str
    user_id: str
    scope: Scope
    name: str
    created_at: int
    expires_at: int | None
    run_id: str | None
    revoked_at: int | None
    made_by: str | None = None


_COLUMNS = [field.name for field in fields(Token)]
_WHOLE = [tokens.c[name] for name in _COLUMNS]
_maker = tokens.alias("maker")


class TokenStore:
    """Tokens in the database. Times are microseconds."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(
        self,
        user_id: str,
        scope: Scope,
        name: str,
        now: int,
        *,
        run_id: str | None = None,
        made_by: str | None = None,
        expires_at: int | None = None,
        secret: str | None = None,
        key: str | None = None,
    ) -> tuple[str, Token]:
        """Make a token; return its secret, which is shown this once, and its row.

        A `secret` of the caller's (the bootstrap token) that is there already is left unchanged. A `key`
        makes one token however often it comes: again, it returns that token with an empty secret, for its own
        is not kept.

        Raises:
            Conflict: the key has made another token.
        """
        plaintext = secret or _PREFIX + secrets.token_urlsafe(32)
        token_id = secrets.token_hex(8) if key is None else _hash(f"{run_id}\n{key}")[:32]
        token = Token(token_id, user_id, scope, name, now, expires_at, run_id, None, made_by)
        values = dict(zip(_COLUMNS, astuple(token), strict=True)) | {"hash": _hash(plaintext)}
        made = await self._db.write(lambda connection: _insert(connection, values))
        if made is not None:
            return plaintext, made
        earlier = await self._db.read_one(lambda connection: connection.execute(_by_id(token_id)).one())
        return "", _same(_to_token(earlier), token)

    async def find(self, plaintext: str, now: int) -> Token | None:
        """Return the token with this secret, unless it or the one that made it is revoked or expired."""
        maker_holds = exists().where(_maker.c.token_id == tokens.c.made_by, *_valid(_maker, now))
        query = select(*_WHOLE).where(
            tokens.c.hash == _hash(plaintext),
            *_valid(tokens, now),
            tokens.c.made_by.is_(None) | maker_holds,
        )
        row = await self._db.read_one(lambda connection: connection.execute(query).first())
        return None if row is None else _to_token(row)

    async def valid(self, token_ids: Collection[str], now: int) -> set[str]:
        """Return which of these tokens are neither revoked nor expired: one query for 10,000 of them."""
        asked, found = list(token_ids), set[str]()
        for first in range(0, len(asked), _AT_ONCE):
            some = tokens.c.token_id.in_(asked[first : first + _AT_ONCE])
            query = select(tokens.c.token_id).where(some, *_valid(tokens, now))
            found |= await self._db.read_one(
                lambda connection, query=query: set(connection.execute(query).scalars())
            )
        return found

    async def lasting(self) -> list[Token]:
        """Return every token but the short-lived ones of streams, oldest first."""
        query = select(*_WHOLE).where(tokens.c.scope != "stream")
        query = query.order_by(tokens.c.created_at, tokens.c.token_id)
        rows = await self._db.read_one(lambda connection: connection.execute(query).all())
        return [_to_token(row) for row in rows]

    async def revoke(self, token_id: str, now: int) -> bool:
        """End a token's validity; whether it was valid until now."""
        row = (tokens.c.token_id == token_id) & tokens.c.revoked_at.is_(None)
        return await self._changed(update(tokens).where(row).values(revoked_at=now)) > 0

    async def purge_expired(self, now: int) -> int:
        """Delete tokens that have expired; return how many."""
        return await self._changed(delete(tokens).where(tokens.c.expires_at <= now))

    async def _changed(self, statement: Any) -> int:
        return await self._db.write_one(lambda connection: connection.execute(statement).rowcount)


def _insert(connection: Connection, values: dict[str, Any]) -> Token | None:
    """Insert a token, or find the one that has this secret; None: one has this id."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(insert(tokens).values(values).on_conflict_do_nothing())
    row = connection.execute(select(*_WHOLE).where(tokens.c.hash == values["hash"])).first()
    return None if row is None else _to_token(row)


def _by_id(token_id: str) -> Any:
    return select(*_WHOLE).where(tokens.c.token_id == token_id)


def _same(earlier: Token, asked: Token) -> Token:
    """Return the earlier token if it is what was asked for; its life counts from when it was made."""
    if _asked_for(earlier) != _asked_for(asked):
        raise Conflict(KEY_REUSED, code="idempotency_key_reused")
    return earlier


def _asked_for(token: Token) -> tuple[Any, ...]:
    life = None if token.expires_at is None else token.expires_at - token.created_at
    return token.user_id, token.scope, token.name, token.run_id, token.made_by, life


def _valid(table: FromClause, now: int) -> tuple[ColumnElement[bool], ...]:
    return table.c.revoked_at.is_(None), table.c.expires_at.is_(None) | (table.c.expires_at > now)


def _to_token(row: Sequence[Any]) -> Token:
    return Token(*row)


def _hash(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode(errors="surrogatepass")).hexdigest()
