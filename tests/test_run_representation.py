"""Representations as a user calls them: of audio, trained and evaluated from the command line, and what does not fit."""

import csv
import warnings
from pathlib import Path

import pytest

from tests.data.audio.files import write_styles
from tests.test_run import call, fails

TINY = [
    "task=mel_representation", "data=audio_folder", "trainer=smoke", "model.dim=16", "model.num_layers=1", "model.num_heads=2",
    "data.segment_frames=32", "data.batch_size=4", "data.prepare_workers=1", "objective.decoder_dim=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("representation")
    write_styles(folder / "sounds", files=10)
    call("train", folder / "one", *TINY, f"data.root={folder / 'sounds'}", f"cache_dir={folder / 'cache'}")
    return folder


def test_an_encoder_of_audio_is_trained_and_evaluated(home: Path) -> None:
    options = ["task=representation", f"ckpt={home / 'one'}", "task.fine_tune_steps=2", "task.shares=[1.0]", "task.split=val"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call("evaluate", home / "judged", *options)
    assert not [warning for warning in told if "LeafSpec" in str(warning.message)]  # Lightning's, which no user can mend
    with (home / "judged" / "probes.csv").open() as file:
        methods = [row["method"] for row in csv.DictReader(file)]
    assert methods == [
        "most frequent class", "this encoder, logistic regression", "random encoder, logistic regression",
        "band statistics, logistic regression", "this encoder, 5 nearest", "random encoder, 5 nearest",
        "this encoder, fine-tuned", "supervised from scratch",
    ]  # fmt: skip
    assert (home / "judged" / "pieces_style.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["objective=masked"], "objective=masked hides tokens of scores; mels have objective=mae"),
        (["objective=simclr", "task.tempi=1"], "task.tempi=1 is not of views of mels"),
        (["model.patch_bands=7"], "must be a multiple of model.patch_bands=7"),
    ],
)
def test_parts_that_do_not_fit_are_told(home: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    own = [option for option in TINY if not option.startswith("objective.")]
    place = [f"data.root={home / 'sounds'}", f"cache_dir={home / 'cache'}"]
    assert message in fails(capsys, "train", home / "wrong", *own, *options, *place)


def test_an_evaluation_refuses_other_mels_and_what_it_does_not_read(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, message in (
        ("+data.contract.n_mels=24", ", here 24; leave the options of data.contract out"),
        ("num_samples=4", "num_samples=4 does nothing for a representation; leave it out; its evaluation has task.split, "),
        ("seed=3", "seed=3 does nothing for a representation"),
    ):
        assert message in fails(capsys, "evaluate", home / "refused", f"ckpt={home / 'one'}", option)
