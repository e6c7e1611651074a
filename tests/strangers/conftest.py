"""The run whose checkpoint the tests alter."""

from pathlib import Path

import pytest

from tests.songs import write_songs
from tests.strangers.checkpoint import SMALL
from tests.test_run import call


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs and the outputs of one small run on them, with a cache of its own."""
    home = tmp_path_factory.mktemp("stranger")
    write_songs(home / "songs")
    call("train", home / "outputs" / "one", *SMALL, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}", "~sampling")
    return home
