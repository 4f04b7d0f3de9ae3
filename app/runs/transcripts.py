"""The transcript of a run, read from its rows page by page while it is sent, without secrets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import lru_cache

from app.config import Settings
from app.core.models import Run
from app.plan.transcript import (
    Mask,
    approval_line,
    call_line,
    end_line,
    head_line,
    message_line,
    run_line,
    step_line,
)
from app.runs.services import Services
from app.stream.masking import Masker
from app.stream.own_secrets import own_secrets
from app.stream.secret_values import secrets_in

_CALLS, _MESSAGES = 10, 50
"""Rows that are in memory at a time."""


def masker_of(settings: Settings, run: Run) -> Mask:
    """Return what hides the secrets of this server, and of the run's own environment. Blocking."""
    values = dict.fromkeys((*own_secrets(settings), *secrets_in(run.spec.get("env") or {})))
    return _masker(settings.log.mask_patterns, tuple(values)).record


async def transcript(services: Services, run: Run) -> AsyncIterator[bytes]:
    """Yield the lines of a run's transcript; may raise `StorageError`."""
    mask = await asyncio.to_thread(masker_of, services.settings, run)
    run_id, lines, after = run.run_id, 2, 0
    page = await services.calls.page(run_id, 0, _CALLS)
    prefix = next((call.prefix for call in page if call.prefix), None)
    yield head_line()
    yield run_line(run, prefix, mask)
    while page:
        steps = await services.calls.steps_of(run_id, page[0].n, page[-1].n)
        written = [call_line(call, mask) for call in page] + [step_line(step, mask) for step in steps]
        lines, after = lines + len(written), page[-1].n
        yield b"".join(written)
        page = await services.calls.page(run_id, after, _CALLS)
    k = 0
    while messages := await services.inbox.after(run_id, k, _MESSAGES):
        lines, k = lines + len(messages), messages[-1].k
        yield b"".join([message_line(each, mask) for each in messages])
    asked = await services.approvals.of_run(run_id)
    yield b"".join([approval_line(each, mask) for each in asked])
    yield end_line(lines + len(asked))


@lru_cache(maxsize=64)
def _masker(patterns: str, values: tuple[str, ...]) -> Masker:
    return Masker(values, patterns.split("\n") if patterns else ())
