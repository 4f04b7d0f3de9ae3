"""What users import: a client of Tailrun's HTTP API, for programs with and without asyncio.

from tailrun import Client

with Client("http://127.0.0.1:8080", token) as client:
    run = client.create(argv=["python", "-c", "print('hello')"])
    for event in client.stream(run["run_id"]):
        print(event.content)
"""

from __future__ import annotations

from tailrun.async_client import AsyncClient
from tailrun.client import Client
from tailrun.errors import (
    APIError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    ServerError,
    TailrunError,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)
from tailrun.events import Event

__all__ = [
    "APIError",
    "AsyncClient",
    "Client",
    "Conflict",
    "Event",
    "Forbidden",
    "Invalid",
    "NotFound",
    "ServerError",
    "TailrunError",
    "TooLarge",
    "TooManyRequests",
    "Unauthorized",
    "Unreachable",
]
