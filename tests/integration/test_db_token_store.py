"""Tokens: found by their secret alone, until revoked or expired."""

from __future__ import annotations

import anyio
import pytest
from sqlalchemy import select
from support.run_rows import NOW

from app.db.engine import Database
from app.db.tables import tokens as table
from app.db.token_store import TokenStore


@pytest.fixture
def tokens(database: Database) -> TokenStore:
    return TokenStore(database)


async def test_a_token_is_found_by_its_secret(tokens: TokenStore, database: Database) -> None:
    """The secret has 256 bits and stands nowhere in the database."""
    secret, made = await tokens.create("ann", "user", "laptop", NOW)
    assert len(secret) >= 43
    assert await tokens.find(secret, NOW) == made
    assert (made.user_id, made.scope, made.name, made.created_at) == ("ann", "user", "laptop", NOW)
    for wrong in ("", secret + "x", made.token_id, "a\x00b", "\ud800"):
        assert await tokens.find(wrong, NOW) is None
    rows = await database.read(lambda connection: connection.execute(select(table)).all())
    assert secret not in str(rows)


async def test_a_revoked_token_is_no_token(tokens: TokenStore) -> None:
    secret, made = await tokens.create("ann", "admin", "x", NOW)
    assert await tokens.revoke(made.token_id, NOW + 1)
    assert await tokens.find(secret, NOW + 2) is None
    assert not await tokens.revoke(made.token_id, NOW + 3)
    assert not await tokens.revoke("unknown", NOW)
    assert [token.revoked_at for token in await tokens.lasting()] == [NOW + 1]


async def test_stream_tokens_expire_and_are_purged(tokens: TokenStore) -> None:
    secret, made = await tokens.create("ann", "stream", "", NOW, run_id="r1", expires_at=NOW + 10)
    kept, _ = await tokens.create("ann", "user", "x", NOW)
    assert (await tokens.find(secret, NOW + 9)) == made
    assert made.run_id == "r1"
    assert await tokens.find(secret, NOW + 10) is None
    assert [token.scope for token in await tokens.lasting()] == ["user"]
    assert await tokens.purge_expired(NOW + 9) == 0
    assert await tokens.purge_expired(NOW + 10) == 1
    assert await tokens.find(kept, NOW + 10)


async def test_the_bootstrap_token_is_made_once(tokens: TokenStore) -> None:
    """Several processes may bring the same secret at their start."""

    async def make() -> None:
        assert (await tokens.create("admin", "admin", "bootstrap", NOW, secret="s3cret"))[0] == "s3cret"

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(make)
    assert len(await tokens.lasting()) == 1
    assert await tokens.find("s3cret", NOW)
