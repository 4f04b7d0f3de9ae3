"""Which language models a run may name: names alone, for a process that calls none.

The API holds what is asked of an agent to these names; it reads no key and no address. The worker reads the
same settings whole (`app.llm.models_file`), and is the one that finds their mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from app.config import LlmSettings
from app.core.errors import Unprocessable
from app.plan.explain import quote, similar
from app.plan.fenced_plans import NO_MODEL

_MOST_BYTES = 1_000_000


class BadModelNames(Exception):
    """The file of models can't be read as one, for whoever operates this server."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model by the name that runs use; `model` is its provider's name for it."""

    name: str
    model: str
    dialect: str


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Every model by name; the first is that of a run that names none."""

    models: Mapping[str, ModelName] = field(default_factory=dict[str, ModelName])

    @property
    def default(self) -> str | None:
        """The model of a run that names none; None: there is no model here."""
        return next(iter(self.models), None)

    def check(self, name: str | None) -> None:
        """Hold a run's model to those that there are.

        Raises:
            Unprocessable: there is none of that name (`unknown_model`), or none at all (`no_model`).
        """
        if self.default is None:
            raise Unprocessable(NO_MODEL, code="no_model")
        if name is not None and name not in self.models:
            there = ", ".join(self.models)
            text = (
                f"agent.model: there is no model {quote(name)}; {similar(name, self.models)}models: {there}."
            )
            raise Unprocessable(text, code="unknown_model")


def load(settings: LlmSettings) -> ModelNames:
    """Return the names of this deployment's models. Blocking.

    Raises:
        BadModelNames: the file of models can't be read.
    """
    entries = {} if settings.models_file is None else _entries(settings.models_file)
    found = {
        name: ModelName(name, str(entry.get("model", name)), str(entry.get("dialect", "chat")))
        for name, entry in entries.items()
    }
    chosen = settings.model
    if not chosen:
        return ModelNames(found)
    first = found.pop(chosen, None) or ModelName(chosen, chosen, settings.dialect)
    return ModelNames({chosen: first, **found})


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BadModelNames(f"LLM_MODELS_FILE: {path} has more than {_MOST_BYTES} bytes")
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadModelNames(f"LLM_MODELS_FILE: {path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError):  # the parser quotes the line, which may hold a key
        raise BadModelNames(f"LLM_MODELS_FILE: {path} is no YAML") from None
    models = found.get("models") if isinstance(found, dict) else None
    if not isinstance(models, dict) or not all(
        isinstance(name, str) and isinstance(entry, dict) for name, entry in models.items()
    ):
        raise BadModelNames(f"LLM_MODELS_FILE: {path} has one key, models, with settings by name below it")
    return cast("dict[str, dict[str, Any]]", models)
