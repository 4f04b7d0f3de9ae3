"""One storage of images, with the stand-in base, for all tests of images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from image_builder import ImageBuilder


@pytest.fixture(scope="session")
def image_builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageBuilder]:
    """A builder whose base is made; about a minute, so it is shared."""
    if os.geteuid() != 0 or not shutil.which("buildah") or not shutil.which("debootstrap"):
        pytest.skip("needs root, buildah and debootstrap: make test-deep installs them")
    builder = ImageBuilder(tmp_path_factory.mktemp("images"))
    builder.make_base()
    yield builder
    builder.close()
