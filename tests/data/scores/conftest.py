"""A folder of scores and a warm cache, which tests of the data module share."""

from pathlib import Path

import pytest

from tests.data.scores.pieces import module, write_folder


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of scores and a warm cache of it."""
    base = tmp_path_factory.mktemp("data")
    root = write_folder(base / "scores", pieces=30)
    module(root, base / "cache").prepare()
    return root, base / "cache"
