"""Asks the cluster at the worker's start whether it may do what it must, and names what is missing."""

from __future__ import annotations

import asyncio

from app.execution.executor import CannotRun
from app.k8s.client import Cluster, ClusterAway, ClusterError

NEEDED = (
    ("batch", "jobs", "", ("create", "get", "list", "watch", "delete")),
    ("", "pods", "", ("list", "watch")),
    ("", "pods", "log", ("get",)),
    ("", "events", "", ("list", "watch")),
    ("", "secrets", "", ("create", "patch")),
)
"""API group, resource, subresource, verbs: all that the worker ever does."""


async def check_access(cluster: Cluster, namespace: str) -> None:
    """Ask for every verb.

    Raises:
        CannotRun: one of them is not allowed, or the cluster does not answer.
    """
    asked = [
        {"namespace": namespace, "verb": verb, "group": group, "resource": kind, "subresource": sub}
        for group, kind, sub, verbs in NEEDED
        for verb in verbs
    ]
    try:
        allowed = await asyncio.gather(*(_may(cluster, attributes) for attributes in asked))
    except (ClusterAway, ClusterError) as error:
        raise CannotRun(f"the cluster can't be asked what the worker may do: {error}") from error
    missing = [_named(attributes) for attributes, may in zip(asked, allowed, strict=True) if not may]
    if missing:
        raise CannotRun(
            f"The worker's service account lacks in namespace {namespace}: {', '.join(missing)}. "
            "Give it a Role with these verbs."
        )


def _named(attributes: dict[str, str]) -> str:
    sub = attributes["subresource"]
    return f"{attributes['verb']} {attributes['resource']}{'/' if sub else ''}{sub}"


async def _may(cluster: Cluster, attributes: dict[str, str]) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await cluster.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    return bool((answer.get("status") or {}).get("allowed"))
