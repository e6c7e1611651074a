"""The life of a grader on a user's folder: training, evaluation, grading, the check before training; and bad input."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from etude.audio.degradations import DEGRADATIONS
from etude.run import grading
from tests.data.audio.files import sound, write
from tests.songs import write_songs
from tests.test_run import ROOT, call, fails
from tests.test_run import TINY as TINY_LANGUAGE_MODEL

RATE = 16_000
TINY = [
    "task=grader", "data=audio_folder", "trainer=smoke", "model.dim=16", "model.channels=4", "model.num_layers=2",
    "data.segment_frames=32", "data.batch_size=2", "data.prepare_workers=1", "data.contract.n_mels=32", "save_every=4",
    "trainer.precision=32-true",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recordings without subfolders, and the outputs of one small run on it."""
    home = tmp_path_factory.mktemp("home")
    for number in range(8):
        write(home / "audio" / f"{number}.wav", sound(number, seconds=3, rate=RATE), rate=RATE)
    call("train", home / "outputs" / "one", *here(home))
    return home


def here(home: Path) -> list[str]:
    return [*TINY, f"data.root={home / 'audio'}", f"cache_dir={home / 'cache'}"]


def grade(folder: Path, *overrides: str) -> Any:
    """Runs `etude grade` in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    options = [f"outputs={folder.parent}", *overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("grade", overrides=options, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return grading.grade(cfg)


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *overrides: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        grade(folder, *overrides)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_curves_and_what_grading_needs(home: Path) -> None:
    folder = home / "outputs" / "one"
    with (folder / "metrics.csv").open() as file:
        columns = csv.DictReader(file).fieldnames or []
    assert {"val/clip_nll", "val/quality_error", "val/map", "train/frames", "train/sections"} <= set(columns)
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["etude"]
    assert saved["defects"] == ["clipping", "click", "dropout", "hum", "hiss", "codec", "wow"] and saved["segment_frames"] == 32
    assert len(saved["temperatures"]) == 7 and saved["temperatures"] != [1.0] * 7


def test_a_run_goes_on_and_equals_an_uninterrupted_one(home: Path, tmp_path: Path) -> None:
    call("train", tmp_path / "whole", *here(home), "~trainer.val_check_interval", "+trainer.val_check_interval=3")
    with pytest.raises(SystemExit):
        call("train", tmp_path / "half", *here(home), "~trainer.val_check_interval", "+trainer.val_check_interval=3", "stop_at=4")
    call("train", tmp_path / "rest", f"ckpt={tmp_path / 'half'}")
    whole, rest = (torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("whole", "rest"))
    assert all(torch.equal(value, rest["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert whole["etude"]["temperatures"] == rest["etude"]["temperatures"]


def test_evaluation_writes_figures_and_pictures(home: Path) -> None:
    folder = home / "outputs" / "evaluated"
    call("evaluate", folder, f"ckpt={home / 'outputs' / 'one'}")
    rows = table(folder / "grader.csv")
    assert [row["defect"] for row in rows] == ["clipping", "click", "dropout", "hum", "hiss", "codec", "wow"]
    pictures = {path.stem for path in folder.glob("*.png")}
    assert {"precision_recall", "confusion", "reliability", "quality", "segment_0"} <= pictures
    text = (folder / "report.html").read_text()
    assert "mean average precision" in text and "http" not in text.replace("http-equiv", "")


def test_grading_a_folder_writes_a_table_and_a_page_and_tells_what_is_low(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sound(1, seconds=3, rate=RATE).astype(np.float32)
    stereo = np.stack([good, -good], axis=1)  # in antiphase
    write(tmp_path / "in" / "deep" / "anti.wav", stereo, rate=RATE)
    noisy = DEGRADATIONS["hiss"](good, 1.0, np.random.default_rng(0), RATE).samples_n
    write(tmp_path / "in" / "noisy.flac", noisy, rate=RATE)
    write(tmp_path / "in" / "brief.wav", good[:4000], rate=RATE)
    write(tmp_path / "in" / "low.wav", sound(2, seconds=3), rate=8000)
    (tmp_path / "in" / "text.wav").write_text("no audio")
    grade(home / "outputs" / "g", f"run={home / 'outputs' / 'one'}", f"audio={tmp_path / 'in'}", f"out={tmp_path / 'g.csv'}",
          "threshold=10")  # fmt: skip
    rows = {row["file"]: row for row in table(tmp_path / "g.csv")}
    assert rows.keys() == {"deep/anti.wav", "noisy.flac", "brief.wav", "low.wav", "text.wav"}
    for name in ("deep/anti.wav", "noisy.flac"):
        assert 1 <= float(rows[name]["quality"]) <= 10 and 0 <= float(rows[name]["hiss"]) <= 1
        assert rows[name]["warning"] == "below quality 10" and float(rows[name]["seconds"]) == 3
    assert "needs 0.51 s" in rows["brief.wav"]["warning"] and "not audio" in rows["text.wav"]["warning"]
    assert "has 8000 samples a second" in rows["low.wav"]["warning"] and not rows["low.wav"]["quality"]
    told = capsys.readouterr().err
    assert "warning: noisy.flac: quality " in told and "not graded: " in told and "graded 2 files, 2 below quality 10" in told
    text = (home / "outputs" / "g" / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 2 and "noisy.flac" in text


def test_a_single_file_and_the_newest_run_are_taken(home: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "one.wav", sound(3, seconds=2, rate=RATE), rate=RATE)
    grade(home / "outputs" / "single", f"audio={path}")
    assert [row["file"] for row in table(home / "outputs" / "single" / "grades.csv")] == ["one.wav"]


def test_the_data_check_tells_before_training(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["data.grader=" + str(home / "outputs" / "one")]
    capsys.readouterr()
    call("train", tmp_path / "checked", *here(home), *check)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data.grader: ")]
    assert len(told) == 1 and ("below quality 6" in told[0]) and ("8 files" in told[0] or "of 8" in told[0])
    kept = list((home / "cache" / "statistics").glob("*-grades-*.json"))
    assert len(kept) == 1
    capsys.readouterr()
    call("train", tmp_path / "again", *here(home), *check)  # from the cache
    assert told[0] in capsys.readouterr().err and list((home / "cache" / "statistics").glob("*-grades-*.json")) == kept


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    write_songs(folder / "songs")
    options = [*TINY_LANGUAGE_MODEL, f"data.root={folder / 'songs'}", f"cache_dir={folder / 'cache'}", "trainer.max_steps=1"]
    call("train", folder / "run", *(o for o in options if not o.startswith("sampling.")), "~sampling")
    return folder / "run"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["audio is missing"]),
        (["audio=nowhere"], ["audio=nowhere: there is no such file or folder"]),
        (["audio={empty}"], ["holds no audio"]),
        (["audio={audio}", "threshold=11"], ["threshold is 11", "1 to 10"]),
        (["audio={audio}", "probability=0"], ["probability is 0"]),
        (["audio={audio}", "out=grades.txt"], ["must end in .csv"]),
        (["audio={audio}", "out={taken}"], ["exists already", "overwrite=true"]),
        (["audio={brief}"], ["no file can be graded", "lasts 0.25 s"]),
        (["audio={audio}", "run=nowhere"], ["run=nowhere: there is no such file"]),
    ],
)
def test_bad_requests_are_told_in_one_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: list[str]
) -> None:
    brief = write(tmp_path / "brief" / "a.wav", sound(0, seconds=0.25, rate=RATE), rate=RATE).parent
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken.csv").write_text("mine")
    places = {"audio": home / "audio", "empty": tmp_path / "empty", "taken": tmp_path / "taken.csv", "brief": brief}
    line = refused(capsys, home / "outputs" / "x", *(option.format(**places) for option in options))
    assert all(word in line for word in expected), line
    assert (tmp_path / "taken.csv").read_text() == "mine"


def test_a_run_of_another_task_is_told(
    home: Path, language_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, tmp_path / "x", f"run={language_model}", f"audio={home / 'audio'}")
    assert "holds a LanguageModel, which grades no audio" in line and "task=grader" in line
    line = fails(capsys, "train", tmp_path / "y", *here(home), f"data.grader={language_model}")
    assert "data.grader=" in line and "holds a LanguageModel, which grades no audio" in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["data.defects=[rumble]"], ["data.defects", "'rumble' is not one of click, clipping"]),
        (["data.defects=[]"], ["data.defects is empty"]),
        (["data.grader=nowhere"], ["data.grader=nowhere: there is no such file"]),
        (["ckpt={one}", "data.contract.n_mels=64"], ["n_mels"]),
        (["ckpt={one}", "data.defects=[hum]"], ["data.defects"]),
        (["task=vocoder", "data.defects=[hum]", "model=vocos"], ["data.defects=['hum']", "task=grader"]),
        (["data.segment_frames=2000"], ["shorter than a segment"]),
        (["data.grader={one}", "data.contract.sample_rate=8000", "data.contract.f_max=4000"], ["data.grader=", "16000", "8000"]),
    ],
)
def test_parts_that_do_not_fit_are_told_in_one_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: list[str]
) -> None:
    given = [option.format(one=home / "outputs" / "one") for option in options]
    changed = {option.partition("=")[0] for option in given}
    rest = [option for option in here(home) if option.partition("=")[0] not in changed]
    rest = [option for option in rest if "task" not in changed or not option.startswith("model.")]
    line = fails(capsys, "train", tmp_path / "run", *rest, *given)
    assert all(word in line for word in expected), line


def test_one_defect_alone_can_be_learnt(home: Path, tmp_path: Path) -> None:
    call("train", tmp_path / "hum", *here(home), "data.defects=[hum]")
    call("evaluate", tmp_path / "e", f"ckpt={tmp_path / 'hum'}")
    assert [row["defect"] for row in table(tmp_path / "e" / "grader.csv")] == ["hum"]
