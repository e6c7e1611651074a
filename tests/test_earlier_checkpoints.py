"""Checkpoints that an earlier version of Etude wrote still load, and training goes on from them as it did then.

The files in tests/checkpoints were written before the modules were sorted into the folders of today: a language model on REMI
tokens with an average and a curriculum, one in its second stage, a grid model, and a style transfer, each of a few steps.
"""

import lzma
from pathlib import Path

import pytest

from etude.run.parts import load_task
from tests.songs import write_songs
from tests.test_run import call
from tests.test_run_audio import write_genres

FILES = Path(__file__).parent / "checkpoints"
SUMS = {"remi": 256.726161, "stages": 252.990787, "grid": 6360.887853, "style": 335.079946}  # of |weight|, as they were saved
MONITORED = {"remi": 6.641995, "stages": 6.651999, "style": 114.142349}  # after eight more steps, as the version of then had it


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def unpacked(name: str, folder: Path) -> Path:
    path = folder / f"{name}.ckpt"
    path.write_bytes(lzma.decompress((FILES / f"{name}.ckpt.xz").read_bytes()))
    return path


@pytest.mark.parametrize("name", SUMS)
def test_an_earlier_checkpoint_loads_its_weights(home: Path, name: str) -> None:
    task, _ = load_task(unpacked(name, home))
    total = sum(float(value.double().abs().sum()) for value in task.state_dict().values() if value.is_floating_point())
    assert total == pytest.approx(SUMS[name], rel=1e-6)


@pytest.mark.parametrize("name", MONITORED)
def test_training_goes_on_from_an_earlier_checkpoint_as_it_did_then(home: Path, name: str) -> None:
    if name == "style":
        write_genres(home / "audio")
    else:
        write_songs(home / "songs")
    root = "audio" if name == "style" else "songs"
    options = [f"ckpt={unpacked(name, home)}", f"data.root={root}", "cache_dir=cache", "trainer.max_steps=16"]
    assert call("train", home / "outputs" / "more", *options) == pytest.approx(
        MONITORED[name], rel=2e-4
    )  # processors round differently
