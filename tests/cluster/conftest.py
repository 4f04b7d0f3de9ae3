"""One place in the cluster for all of these tests; see cluster_place for what they need."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster_place import NEEDED, Place
from support.stack import Stack


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        pytest.skip(f"no cluster to test on: set {', '.join(missing)} (see tests/cluster/cluster_place.py)")
    place = Place(tmp_path_factory.mktemp("cluster"))
    yield place
    place.close()


@pytest.fixture
def stack(place: Place) -> Stack:
    return place.stack
