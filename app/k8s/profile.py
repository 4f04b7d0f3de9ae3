"""The bounds of a tool's pod: the deployment's settings, and a step's wishes within their bounds.

Kubernetes quantities (`500m`, `1.5`, `512Mi`), compared with the bounds that a deployment sets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import orjson

from app.config import KubernetesSettings
from app.core.models import ResourceRequest
from tailrun.process.errors import ErrorCode, RunFailure

NETWORKS = ("none", "internet")
"""From little to much; each is a value of the pods' label `tailrun/network`."""

_IN_A_COMPONENT = "[A-Za-z0-9_.:@-]"
_BELOW = "[A-Za-z0-9_.:@/-]+"
_IN_OUR_IMAGE = frozenset({"sh", "bash", "python", "python3"})


@dataclass(frozen=True, slots=True)
class Profile:
    """How pods of one tool are made. Times in seconds, `cpu`, `memory` and `disk` are quantities.

    `wrapped`: the image holds our wrapper, so lines come as frames; else they come raw.
    """

    image: str
    cpu: str
    memory: str
    network: str
    runtime_class: str | None = None
    timeout_s: float | None = None
    wrapped: bool = True


class Profiles:
    """The profile of each tool, and of each step that wants something else."""

    def __init__(self, settings: KubernetesSettings) -> None:
        if not settings.image:
            raise ValueError("TOOL_EXECUTOR=kubernetes needs TOOL_IMAGE: the image with Tailrun's toolbox")
        amount(settings.cpu_request)
        self._settings, self.toolbox_image = settings, settings.image
        default = Profile(
            settings.image,
            settings.cpu,
            settings.memory,
            settings.network,
            settings.runtime_class,
        )
        self._default = default
        self._tools = {name: _merged(default, fields) for name, fields in _parsed(settings).items()}
        own = (settings.image, *(profile.image for profile in self._tools.values()))
        allowed = (pattern.strip() for pattern in settings.images_allowed.split(","))
        self._images = tuple(image_pattern(each) for each in (*own, *filter(None, allowed)))

    def of(self, tool: str, wants: ResourceRequest) -> Profile:
        """Return the profile for a step; a `RunFailure` that no retry mends if it wants too much."""
        base = self._tools.get(tool, self._default)
        if not wants:
            return base
        if wants.image is not None and not any(each.fullmatch(wants.image) for each in self._images):
            raise _refused(f"the image {wants.image!r} is not allowed here", "TOOL_IMAGES_ALLOWED")
        for name, most in (("cpu", self._settings.cpu_max), ("memory", self._settings.memory_max)):
            wanted = getattr(wants, name)
            if wanted is not None and amount(wanted) > amount(most):
                raise _refused(f"{name} {wanted} is more than {most}", f"TOOL_{name.upper()}_MAX")
        widest = NETWORKS.index(self._settings.network_max)
        if wants.network is not None and NETWORKS.index(wants.network) > widest:
            raise _refused(f"the network {wants.network!r} is not allowed here", "TOOL_NETWORK_MAX")
        return replace(
            base,
            image=wants.image or base.image,
            cpu=wants.cpu or base.cpu,
            memory=wants.memory or base.memory,
            network=wants.network or base.network,
            wrapped=base.wrapped if wants.image in {None, base.image} else wants.image == self.toolbox_image,
        )

    def has_program(self, program: str, wants: ResourceRequest) -> bool:
        """Whether our image has a program; of other images it is unknown, but bash is not in all."""
        if wants.image not in {None, self.toolbox_image}:
            return program != "bash"
        return program in _IN_OUR_IMAGE or any(p.image != self.toolbox_image for p in self._tools.values())


def image_pattern(allowed: str) -> re.Pattern[str]:
    """Return what the names of allowed images match, whole; the chart's image policy does the same.

    `*` matches characters of one component, tag and digest included, so that `box:*` is every tag of
    `box`, and not a registry `box:5000/…`. As the last component (`registry.example/team/*`) it matches
    everything below. `?` is one character of a component.
    """
    below, rest = ("", allowed) if allowed.rpartition("/")[2] != "*" else (_BELOW, allowed[:-1])
    parts = {"*": f"{_IN_A_COMPONENT}*", "?": _IN_A_COMPONENT}
    return re.compile("".join(parts.get(each) or re.escape(each) for each in rest) + below)


def _refused(what: str, setting: str) -> RunFailure:
    return RunFailure(
        ErrorCode.START_FAILED,
        f"This step was not started: {what} (the deployment's setting {setting}).",
        retried=False,
    )


def _parsed(settings: KubernetesSettings) -> Mapping[str, Mapping[str, Any]]:
    try:
        found = orjson.loads(settings.profiles or "{}")
        return {str(name): dict(fields) for name, fields in found.items()}
    except (orjson.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"TOOL_PROFILES is no JSON object of objects by tool: {error}") from None


def _merged(default: Profile, fields: Mapping[str, Any]) -> Profile:
    try:
        profile = replace(default, **fields)
        amount(profile.cpu)
        amount(profile.memory)
        NETWORKS.index(profile.network)
    except (TypeError, ValueError) as error:
        raise ValueError(f"TOOL_PROFILES: {error}") from None
    if profile.image != default.image and "wrapped" not in fields:
        return replace(profile, wrapped=False)
    return profile


_QUANTITY = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_FACTORS = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
}


def amount(quantity: str) -> Decimal:
    """Return a quantity as a number; ValueError if it is none."""
    found = _QUANTITY.fullmatch(quantity)
    if found is None:
        raise ValueError(f"{quantity!r} is no quantity like 500m, 2 or 512Mi")
    return Decimal(found[1]) * _FACTORS[found[2] or ""]
