"""Tokens of people and programs: made, listed and revoked by an admin."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response

from app.core.clock import now_us
from app.core.errors import NotFound, StorageError
from app.core.telemetry import get_logger
from app.routes.auth import Admin, CurrentServices
from app.routes.body import IdempotencyKey, documents, json_body, made_before
from app.routes.schemas import NewToken, TokenList, TokenMade
from app.routes.views import answer, token_view
from app.runs.services import Principal
from app.runs.submit import checked_key

_log = get_logger(__name__)
router = APIRouter(prefix="/v1/tokens", tags=["tokens"])

_EXAMPLES = {"token": {"user_id": "ada", "scope": "user", "name": "laptop"}}


@router.get("", response_model=TokenList)
async def list_tokens(_admin: Admin, services: CurrentServices) -> Response:
    """List tokens, without their secrets."""
    tokens = [token for token in await services.tokens.lasting() if token.scope != "stream"]
    return answer({"items": [token_view(token) for token in tokens], "next": None})


@router.post(
    "",
    status_code=201,
    response_model=TokenMade,
    responses=made_before(TokenMade),
    openapi_extra=documents(NewToken, examples=_EXAMPLES),
)
async def create(
    body: Annotated[NewToken, json_body(NewToken)],
    admin: Admin,
    services: CurrentServices,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a token. Its secret is in this answer and nowhere else, also not in one to a repeated request."""
    now = now_us()
    expires_at = None if body.expires_in_s is None else now + body.expires_in_s * 1_000_000
    secret, token = await services.tokens.create(
        body.user_id,
        body.scope,
        body.name,
        now,
        expires_at=expires_at,
        key=once(admin, checked_key(idempotency_key)),
    )
    return answer({**token_view(token), "token": secret or None}, 201 if secret else 200)


def once(caller: Principal, key: str | None) -> str | None:
    """Return what names a caller's `Idempotency-Key` among everybody's."""
    return None if key is None else f"{caller.user_id}\n{key}"


@router.delete("/{token_id}", status_code=204)
async def revoke(
    token_id: Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")],
    _admin: Admin,
    services: CurrentServices,
) -> Response:
    """Revoke a token: it opens nothing from now on, and its open streams end within seconds."""
    if not await services.tokens.revoke(token_id, now_us()):
        raise NotFound(f"There is no live token {token_id!r}.")
    try:
        await services.publisher.revoked(token_id)
    except StorageError as error:  # each process finds out by itself, a little later
        _log.warning("revocation not announced", error=str(error))
    return Response(status_code=204)
