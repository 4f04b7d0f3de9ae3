"""A port of its own for tool pods: there the staging routes and nothing else, and nowhere else those.

So a network policy can let tools fetch their files without letting them at the API. Decided by the
port that the connection came in on, which no header says.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from app.routes.errors import error_answer

_BELOW = "/v1/staging/"


class StagingPort:
    """ASGI middleware that keeps the staging routes and the port together."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve what belongs to the port; anything else is not there."""
        if scope["type"] == "lifespan" or self._belongs(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await error_answer(404, "not_found", "There is nothing of that name.")(scope, receive, send)

    def _belongs(self, scope: Scope) -> bool:
        _, port = scope.get("server") or ("", None)
        return (port == self._port) == scope["path"].startswith(_BELOW)
