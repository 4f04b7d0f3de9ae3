"""One tree of errors: whoever catches its root catches a store that is away too."""

from __future__ import annotations

import pytest

from app.core.errors import StorageError, TailrunError
from app.k8s.client import ClusterAway
from app.redis.clients import RedisDown


@pytest.mark.parametrize("kind", [StorageError, RedisDown, ClusterAway])
def test_a_server_that_is_away_is_in_the_tree(kind: type[StorageError]) -> None:
    error = kind("10.0.0.7 does not answer")
    assert isinstance(error, TailrunError)
    assert (error.status, error.code, error.message) == (503, "unavailable", "10.0.0.7 does not answer")
