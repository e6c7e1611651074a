"""Robustness as a user measures it: evaluate.py robustness=NAME on a trained grader, and what it refuses."""

import csv
from pathlib import Path

import pytest

from tests.data.audio.files import sound, write
from tests.test_run import call, fails

RATE = 16_000
TINY = [
    "task=grader", "model=grader_plain", "data=audio_folder", "trainer=smoke", "model.dim=16", "model.channels=4",
    "model.num_layers=1", "data.segment_frames=32", "data.batch_size=2", "data.prepare_workers=1", "data.contract.n_mels=32",
    "save_every=4", "trainer.precision=32-true", "technique=[trades]", "technique.trades.steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recordings, and the outputs of a small run with TRADES on it."""
    home = tmp_path_factory.mktemp("home")
    for number in range(8):
        write(home / "audio" / f"{number}.wav", sound(number, seconds=3, rate=RATE), rate=RATE)
    call("train", home / "outputs" / "one", *TINY, f"data.root={home / 'audio'}", f"cache_dir={home / 'cache'}")
    return home


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "robustness.csv").open() as file:
        return list(csv.DictReader(file))


def test_attacks_and_bounds_are_written(home: Path) -> None:
    run, few = home / "outputs" / "one", ["robustness.num_examples=4", "robustness.heads=[hum]", "robustness.snr_db=[60,30]"]
    for name, columns in (
        ("fgsm", {"accuracy under attack", "accuracy under random noise"}),
        ("ibp", {"certified accuracy", "accuracy under PGD"}),
    ):
        folder = home / "outputs" / name
        call("evaluate", folder, f"ckpt={run}", f"robustness={name}", *few)
        found = rows(folder)
        assert [float(row["snr_db"]) for row in found] == [60, 30] and columns <= set(found[0])
        assert (folder / "robustness.png").is_file() and "Robustness" in (folder / "report.html").read_text()
    transfer = ["robustness=fgsm", f"robustness.transfer_from={run}"]
    call("evaluate", home / "outputs" / "transfer", f"ckpt={run}", *transfer, *few)
    with (home / "outputs" / "transfer" / "transfer.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


def test_what_does_nothing_beside_it_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = f"ckpt={home / 'outputs' / 'one'}"
    for options, told in (
        (["num_samples=3"], "num_samples=3 does nothing beside robustness="),
        (["files=somewhere"], "files=somewhere does nothing beside robustness="),
        (["robustness.snr_db=[-5]"], "robustness.snr_db=-5 must be at least 0 dB"),
    ):
        assert told in fails(capsys, "evaluate", home / "outputs" / "refused", run, "robustness=fgsm", *options)
    few = ["robustness=smoothing", "robustness.samples=3"]
    assert "samples=3 certify nothing" in fails(capsys, "evaluate", home / "outputs" / "refused", run, *few)
