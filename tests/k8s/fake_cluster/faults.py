"""Faults on order: what happens to the requests that match."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from fake_cluster.http import Answer, Request


@dataclass
class Fault:
    """Answers `times` matching requests, from the `skip`th on, in its own way.

    `answer` replaces the answer; `cut_after` breaks the real one; `after` is called when the request
    has had its effect, before anything is answered.
    """

    method: str
    path: str
    answer: Callable[[], Answer] | None = None
    cut_after: Callable[[], int | None] | None = None
    after: Callable[[], None] | None = None
    times: int = 1
    skip: int = 0

    def matches(self, request: Request) -> bool:
        if self.times <= 0 or request.method != self.method or not re.search(self.path, request.path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True
