"""What is told to the programs of this package: `TOOLBOX_*` variables of the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

PREFIX = "TOOLBOX_"


class Settings(NamedTuple):
    """What `exec` goes by; times in seconds."""

    wait: str = ""
    grace_s: float = 5.0
    timeout_s: float = float("inf")
    cwd: str = "/workspace"

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Settings:
        """Take the settings from `env`; ValueError, naming the variable, where a number is none."""
        return cls(
            wait=env.get("TOOLBOX_WAIT", ""),
            grace_s=seconds(env, "TOOLBOX_GRACE_S", cls().grace_s),
            timeout_s=seconds(env, "TOOLBOX_TIMEOUT_S", cls().timeout_s),
            cwd=env.get("TOOLBOX_CWD", cls().cwd),
        )


def seconds(env: Mapping[str, str], name: str, default: float) -> float:
    """Return a time from `env`, `default` if it is not set or empty."""
    text = env.get(name, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise ValueError(f"{name} is {text[:50]!r}, which is no number of seconds") from None


def for_the_program() -> dict[str, str]:
    """Return the environment without what was said to us alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
