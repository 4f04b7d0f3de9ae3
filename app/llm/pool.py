"""The models of one worker: made at their first use, shared by all its runs, closed with it."""

from __future__ import annotations

from app.config import LlmSettings
from app.llm.client import ModelClient
from app.llm.models_file import ModelTable, load
from app.llm.prices import Prices


class NoSuchModel(Exception):
    """This worker has no such model; the message says which it has."""


class ModelPool:
    """Gives out models by name; belongs to one event loop. One client a model: its gate is for all runs."""

    def __init__(self, table: ModelTable, prices: Prices) -> None:
        self.table = table
        self.prices = prices
        self._clients: dict[str, ModelClient] = {}

    @classmethod
    def of(cls, settings: LlmSettings) -> ModelPool:
        """Read what the settings name. Blocking.

        Raises:
            BadModels: a setting or a file is wrong.
        """
        return cls(load(settings), Prices.load(settings.prices_file))

    def model(self, name: str | None) -> ModelClient:
        """Return the model of this name, or the default one.

        Raises:
            NoSuchModel: there is none.
        """
        config = self.table.default if name is None else self.table.models.get(name)
        if config is None:
            known = ", ".join(self.table.models) or "none; set LLM_MODEL (see docs/agent.md)"
            wanted = "a model" if name is None else f"the model {name[:100]!r}"
            raise NoSuchModel(f"This run needs {wanted}, and its worker has: {known}.")
        if config.name not in self._clients:
            self._clients[config.name] = ModelClient(config)
        return self._clients[config.name]

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()
