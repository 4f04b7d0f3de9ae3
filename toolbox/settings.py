"""The settings of the programs of this package: `TOOLBOX_*` variables of the environment."""

from __future__ import annotations

import os

_AS_IT_IS = {"", "$PATH", "${PATH}"}


class ToolboxSettings:
    """The settings of `exec`; times in seconds. Plain, for `typing` alone costs 7 ms of start-up.

    ValueError, naming the variable, where a number is none.
    """

    def __init__(self, env: dict[str, str]) -> None:
        self.wait = env.get("TOOLBOX_WAIT", "")
        self.grace_s = seconds(env, "TOOLBOX_GRACE_S", 5.0)
        self.timeout_s = seconds(env, "TOOLBOX_TIMEOUT_S", float("inf"))
        self.cwd = env.get("TOOLBOX_CWD") or "/workspace"


def seconds(env: dict[str, str], name: str, default: float) -> float:
    """Return a time from `env`, `default` if it is not set or empty."""
    text = env.get(name, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise ValueError(f"{name} is {text[:50]!r}, which is no number of seconds") from None


def for_the_program() -> dict[str, str]:
    """Return it without what is meant for the wrapper alone; the folders of `TOOLBOX_PATH` go first."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TOOLBOX_")}
    asked = [folder for folder in os.environ.get("TOOLBOX_PATH", "").split(":") if folder not in _AS_IT_IS]
    if asked:
        env["PATH"] = ":".join([*asked, env.get("PATH", os.defpath)])
    return env
