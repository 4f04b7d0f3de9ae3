"""Seeing to the dead letters: list, show, retry, drop; one, many or all.

Whose a letter is, its run's row says: what an entry claims can be made up. An admin sees
every letter, also of entries that were none; those have no run, but an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from app.core.errors import NotFound, StorageError, TailrunError, TooManyRequests, Unprocessable
from app.core.models import Run
from app.redis.queue import Letter
from app.routes.auth import CurrentServices, CurrentUser, OwnRun
from app.routes.body import IdempotencyKey, PageLimit, documents, json_body, made_before
from app.routes.logs import last_events
from app.routes.queue import DeadDetail, DeadList, DeadRetried, DeadRetry, Dropped
from app.routes.schemas import RunDetail
from app.routes.views import answer, links, run_detail, run_view
from app.runs.services import RUN_ID, Principal, Services
from app.runs.submit import LETTER_KEY, retried_before, retry_run

router = APIRouter(prefix="/v1/dead", tags=["queue"])

_SCAN = 500
_MADE_AT_ONCE = 200
"""Runs that one request makes; the answer says how many letters are left."""

LetterName = Annotated[str, Path(max_length=64, description="A letter's id, or its run's.")]
_EXAMPLES = {"some": {"run_ids": ["0b5c8a52-5c0e-4a55-9d0c-7f4f3f6e2a11"]}, "all": {"all": True}}


@router.get("", response_model=DeadList)
async def list_letters(
    user: CurrentUser,
    services: CurrentServices,
    limit: PageLimit = 50,
    cursor: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,6}$", description="`next` of the page before.")
    ] = None,
) -> Response:
    """List dead letters, newest first: your own, or all of them for an admin."""
    items: list[dict[str, Any]] = []
    offset = int(cursor or 0)
    while letters := await services.dead.page(offset, _SCAN):
        own = {letter.letter_id for letter in await _open_to(services, user, letters)}
        for letter in letters:
            if len(items) == limit:
                return answer({"items": items, "next": str(offset)})
            offset += 1
            if letter.letter_id in own:
                items.append(_view(letter))
    return answer({"items": items, "next": None})


@router.get("/{name}", response_model=DeadDetail)
async def show(
    name: LetterName,
    user: CurrentUser,
    services: CurrentServices,
    logs: Annotated[int, Query(ge=0, le=1000, description="So many of its run's last events.")] = 20,
) -> Response:
    """Show a dead letter, its run, and the end of the run's log."""
    [letter, *_] = await _named(services, user, name)
    run = await _run_of(services, letter)
    body = _view(letter) | {"run": None if run is None else run_view(run), "logs": []}
    if run is not None:
        body["logs"] = [event.as_dict() for event in await last_events(services.logs, run.run_id, logs)]
    return answer(body)


@router.post("/retry", response_model=DeadRetried, openapi_extra=documents(DeadRetry, examples=_EXAMPLES))
async def retry_many(
    body: Annotated[DeadRetry, json_body(DeadRetry)], user: CurrentUser, services: CurrentServices
) -> Response:
    """Make a new run of each of many dead letters, or of all; at most 200 in one request."""
    if body.all is (body.run_ids is not None):
        raise Unprocessable('Send either {"run_ids": […]} or {"all": true}.')
    wanted = None if body.run_ids is None else set(body.run_ids)
    letters = await _chosen(services, user, wanted)
    missing = (wanted or set()) - {letter.run_id for letter in letters}
    refused = [_refusal(run_id, "There is no dead letter of this run.") for run_id in sorted(missing)]
    items: list[dict[str, Any]] = []
    while letters and len(items) < _MADE_AT_ONCE:
        letter = letters.pop()
        try:
            made = await _retry(services, letter)
        except TooManyRequests:
            if not items:
                raise
            letters.append(letter)
            break
        except StorageError:
            raise
        except TailrunError as error:
            refused.append(_refusal(letter.run_id, error.message))
        else:
            items.append({"run_id": letter.run_id, "retried_as": made.run_id})
    return answer({"items": items, "refused": refused, "left": len(letters)})


@router.post("/{run_id}/retry", status_code=201, response_model=RunDetail, responses=made_before(RunDetail))
async def retry(run: OwnRun, services: CurrentServices, idempotency_key: IdempotencyKey = None) -> Response:
    """Make a new run like the dead one, and drop its letter."""
    letters = await services.dead.named(run.run_id)
    made = await retried_before(services, run, idempotency_key)
    if made is None and letters:
        made = await retry_run(services, run, idempotency_key or _key(letters[0]))
    if made is None:
        raise NotFound(f"Run {run.run_id} is no dead letter; POST {links(run.run_id)['self']}/retry instead.")
    await services.dead.remove(letters)
    where = {"Location": links(made.run.run_id)["self"]}
    return answer(run_detail(made.run), 201 if made.fresh else 200, where)


@router.delete("", response_model=Dropped)
async def drop_many(
    user: CurrentUser,
    services: CurrentServices,
    *,
    names: Annotated[
        list[str] | None, Query(alias="id", max_length=1000, description="Ids of letters or of runs.")
    ] = None,
    everything: Annotated[bool, Query(alias="all", description="All that you may see.")] = False,
) -> Response:
    """Drop many dead letters, or all: your own, and for an admin everybody's and malformed ones."""
    if everything is (names is not None):
        raise Unprocessable("Send either ?id=…&id=… or ?all=1.")
    wanted = None if names is None else set(names)
    letters = [letter async for letter in services.dead.all() if _is_wanted(letter, wanted)]
    return answer({"dropped": await services.dead.remove(await _open_to(services, user, letters))})


@router.delete("/{name}", status_code=204)
async def drop(name: LetterName, user: CurrentUser, services: CurrentServices) -> Response:
    """Drop the dead letters of a run, or one by its id; the run's own record stays."""
    if not await services.dead.remove(await _named(services, user, name)):
        raise _unknown(name)
    return Response(status_code=204)


async def _retry(services: Services, letter: Letter) -> Run:
    run = await _run_of(services, letter)
    if run is None:
        raise NotFound("There is no such run.")
    made = await retry_run(services, run, _key(letter))
    await services.dead.remove([letter])
    return made.run


def _key(letter: Letter) -> str:
    """Return what makes two retries of one letter, at the same time or after a lost answer, one run."""
    return f"{LETTER_KEY}{letter.letter_id}"


async def _chosen(services: Services, user: Principal, run_ids: set[str] | None) -> list[Letter]:
    """Return one letter of each run that is to be retried, the newest first; None: of all runs."""
    by_run: dict[str | None, Letter] = {}
    async for letter in services.dead.all():
        if run_ids is None or letter.run_id in run_ids:
            by_run.setdefault(letter.run_id, letter)
    users = await _users(services, list(by_run.values()))
    return [letter for run_id, letter in by_run.items() if run_id in users and _may(user, letter, users)]


def _may(user: Principal, letter: Letter, users: dict[str, str]) -> bool:
    """Whether a letter is open to the caller; `users` says whose each run is."""
    if user.admin:
        return True
    entry = letter.body.get("entry")
    claims = entry.get("user_id") if isinstance(entry, dict) else None
    return users.get(letter.run_id or "") == user.user_id and claims in (None, "", user.user_id)


def _is_wanted(letter: Letter, names: set[str] | None) -> bool:
    return names is None or bool(names & {letter.letter_id, letter.run_id})


async def _named(services: Services, user: Principal, name: str) -> list[Letter]:
    letters = await _open_to(services, user, await services.dead.named(name))
    if not letters:
        raise _unknown(name)
    return letters


def _unknown(name: str) -> NotFound:
    return NotFound(f"There is no dead letter {name[:64]!r}, and none of a run of that id.")


async def _open_to(services: Services, user: Principal, letters: Sequence[Letter]) -> list[Letter]:
    """Return the letters that the caller may see: their own runs', or all of them for an admin."""
    users = {} if user.admin else await _users(services, letters)
    return [letter for letter in letters if _may(user, letter, users)]


async def _users(services: Services, letters: Sequence[Letter]) -> dict[str, str]:
    named = {letter.run_id for letter in letters if letter.run_id is not None}
    return await services.runs.users([run_id for run_id in named if RUN_ID.fullmatch(run_id)])


async def _run_of(services: Services, letter: Letter) -> Run | None:
    run_id = letter.run_id
    return await services.runs.get(run_id) if run_id is not None and RUN_ID.fullmatch(run_id) else None


def _view(letter: Letter) -> dict[str, Any]:
    return {"id": letter.letter_id} | letter.body


def _refusal(run_id: str | None, message: str) -> dict[str, Any]:
    return {"run_id": run_id, "message": message}
