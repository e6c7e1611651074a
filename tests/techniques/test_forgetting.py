"""The forgetting matrix and the phases of stage=genres: exact, by genre, per note, recalled; files; refusals."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.core.measuring import measure_all
from etude.data.scores.corpora import Folder
from etude.techniques.continual.forgetting import Forgetting
from etude.techniques.continual.packnet import PackNet
from etude.techniques.optim.stages import Stages
from tests.core.test_phases import Heard
from tests.songs import write_songs
from tests.test_composition import build, music
from tests.toys import trainer


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    return {"every": 3}


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("forgetting") / "songs", count=40)


def run(songs: Path, folder: Path, *callbacks: Any, kind: str = "language_model", steps: int = 12) -> tuple[Any, Any]:
    task, data = build(kind, songs)
    fitted = trainer(folder, max_steps=steps, callbacks=list(callbacks), limit_val_batches=0)
    fitted.fit(task, datamodule=data)
    return task, data


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "forgetting.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_phase_trains_on_the_training_pieces_of_one_genre_alone(songs: Path, tmp_path: Path) -> None:
    heard = Heard()
    run(songs, tmp_path, Stages(each={"column": "genre", "order": ["folk", "classical"], "max_steps": 6}), heard)
    assert heard.genres == [{"folk"}] * 6 + [{"classical"}] * 6


def test_a_checkpoint_knows_the_genres_that_phases_have_drawn(songs: Path, tmp_path: Path) -> None:
    task, data = run(songs, tmp_path, Stages(each={"order": ["folk", "classical"]}))
    task.trained_labels = data.trained_labels()
    for index, genres in ((0, ["folk"]), (1, ["classical", "folk"])):
        task.phases.index = index
        saved: dict[str, Any] = {}
        task.on_save_checkpoint(saved)
        assert saved["etude"]["trained_labels"] == {**task.trained_labels, "genre": genres}


def test_the_matrix_is_that_of_separate_evaluations(songs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    technique = Forgetting()
    task, data = run(songs, tmp_path, Stages(each={"order": ["folk", "classical"]}), technique)
    table, task = data.manifest("val"), task.eval()
    nats, counts = {}, {}
    for batch in data.evaluation_loader("val"):  # all genres in one pass: split by piece
        with torch.no_grad():
            nll = task.token_nll(batch)
        counted = batch["targets"] != -100
        for piece in batch["piece"][counted].unique().tolist():
            genre, mine = table["genre"][piece].as_py(), counted & (batch["piece"] == piece)
            nats[genre] = nats.get(genre, 0.0) + float(nll[mine].double().sum())
            counts[genre] = counts.get(genre, 0) + int(mine.sum())
    genres, notes = np.array(table["genre"].to_pylist()), table["notes"].to_numpy()
    last = {(row["measured"], row["measure"]): float(row["value"]) for row in rows(tmp_path) if row["after"] == "classical"}
    for genre in ("folk", "classical"):
        assert last[genre, "nll"] == pytest.approx(nats[genre] / counts[genre], rel=1e-4)
        assert last[genre, "nll_per_note"] == pytest.approx(nats[genre] / notes[genres == genre].sum(), rel=1e-4)
    both = sum(nats.values()) / sum(counts.values())
    assert measure_all(task, data.evaluation_loader("val"))["nll"] == pytest.approx(both, rel=1e-5)
    assert [row["after"] for row in technique.rows] == ["start", "folk", "classical"]
    assert (tmp_path / "forgetting.png").read_bytes().startswith(b"\x89PNG")
    assert "forgetting: nll_per_note, nats per note, measured on" in caplog.text and "backward_transfer" in caplog.text


def test_weights_of_a_phase_are_recalled_where_they_are_kept(songs: Path, tmp_path: Path) -> None:
    technique = Forgetting()
    run(songs, tmp_path, Stages(each={"order": ["folk", "classical"]}), technique, PackNet(keep=0.6))
    _, folk, classical = (row["values"]["nll"] for row in technique.rows)
    assert folk[0] == pytest.approx(classical[0], rel=1e-5) and folk[1] != pytest.approx(classical[1], rel=1e-3)


def test_a_classifier_has_its_accuracies_by_genre(songs: Path, tmp_path: Path) -> None:
    run(songs, tmp_path, Stages(each={}), Forgetting(every=4), kind="classifier")
    found = [row for row in rows(tmp_path) if row["measure"] == "genre_accuracy"]
    assert {row["measured"] for row in found} == {"folk", "classical"}
    assert [row["step"] for row in found[::2]] == ["0", "4", "6", "10", "12"]
    assert all(0 <= float(row["value"]) <= 1 for row in found)


def test_folders_are_genres_in_their_order(songs: Path, tmp_path: Path) -> None:
    folders = [str(songs / name) for name in ("folk", "classical")]
    heard = Heard()
    torch.manual_seed(0)
    task, _ = build("language_model", songs)
    data = music(songs, corpus=Folder(roots=folders), cache_dir=str(tmp_path / "cache"))
    assert data.tokenizer.fingerprint == task.tokenizer.fingerprint
    fitted = trainer(tmp_path, max_steps=8, callbacks=[Stages(each={"folders": folders}), heard], limit_val_batches=0)
    fitted.fit(task, datamodule=data)
    assert heard.genres == [{"folk"}] * 4 + [{"classical"}] * 4
    assert sorted(source.genre for source in data.corpus.files()) == ["classical"] * 20 + ["folk"] * 20


def test_bad_folders_are_told(songs: Path, tmp_path: Path) -> None:
    folk = songs / "folk"
    with pytest.raises(ValueError, match=r"data\.corpus\.roots: two folders are named folk"):
        Folder(roots=[str(folk), str(folk)]).files()
    with pytest.raises(ValueError, match=r"data\.root=.* and data\.corpus\.roots are both given"):
        Folder(root=str(songs), roots=[str(folk)]).files()


@pytest.mark.parametrize(
    ("each", "message"),
    [
        (
            {"order": ["folk", "ska"]},
            r"genre 'ska' has no training piece, so its phase .* empty; there are classical, folk",
        ),
        ({"order": ["folk"]}, r"have one genre only"),
        ({"order": ["folk", "folk"]}, r"names \['folk'\] twice"),
        ({"column": "mood"}, r"there is no column 'mood'; the columns are"),
        ({"max_steps": 7}, r"2 phases of 7 steps are more than max_steps=12; set max_steps to 14"),
        ({"max_steps": 0}, r"max_steps is 0, must be at least 1 step"),
        ({"speed": 1}, r"technique\.stages\.each has 'speed'; the keys are"),
    ],
)
def test_bad_phases_are_told(songs: Path, tmp_path: Path, each: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(songs, tmp_path, Stages(each=each))


def test_what_can_not_be_measured_is_told(songs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"technique\.forgetting\.split is 'train', must be val or test"):
        Forgetting(split="train")
    with pytest.raises(ValueError, match=r"technique forgetting needs measures, and ToyGan has none"):
        run(songs, tmp_path, Forgetting(), kind="gan")
    with pytest.raises(ValueError, match=r"technique forgetting: there is no column 'tempo'"):
        run(songs, tmp_path, Forgetting(column="tempo"))


def test_a_phase_without_held_out_pieces_is_told_with_the_remedy(songs: Path, tmp_path: Path) -> None:
    task, _ = build("language_model", songs)
    data = music(songs, split=[0.98, 0.01, 0.01])
    fitted = trainer(tmp_path, max_steps=8, callbacks=[Stages(each={"column": "genre"}), Forgetting()], limit_val_batches=0)
    with pytest.raises(ValueError, match=r"there is no piece of \w+ in the split val; give data\.split a larger share for it"):
        fitted.fit(task, datamodule=data)
