"""Synthesis as a user calls it: a run on pairs of score and sound, its evaluation, scores to sound, a whole performance."""

import csv
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from symusic import Note, Score, Track

from tests.data.audio.files import sound, write
from tests.data.audio.test_paired_folder import tune, write_pair
from tests.test_run import call, fails

TINY = [
    "task=synthesis", "data=paired_folder", "trainer=smoke", "model.dim=16", "model.num_blocks=1", "model.voices=2",
    "data.segment_frames=32", "data.batch_size=2", "data.prepare_workers=1", "save_every=4", "sampling.num_songs=1",
    "sampling.seconds=1", "sampling.num_iters=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of score and sound, with one that fits nothing, and the outputs of a small run on them."""
    home = tmp_path_factory.mktemp("home")
    for number in range(8):
        write_pair(home / "pairs", f"song{number}", tune(number))
    write(home / "pairs" / "lonely.wav", sound(1))
    tune(77).dump_midi(home / "my.mid")
    options = [*TINY, f"data.root={home / 'pairs'}", f"cache_dir={home / 'cache'}", "sample_every=5"]
    call("train", home / "outputs" / "one", *options)
    return home


def test_a_run_leaves_sounds_and_pictures(home: Path) -> None:
    folder = home / "outputs" / "one"
    names = {path.name for path in (folder / "samples").iterdir()}
    kinds = ("truth", "rebuilt", "predicted")
    assert names == {*(f"{kind}_pairs_0.wav" for kind in kinds), "pairs_0.png", "samples.csv"}
    for kind in kinds:
        samples, rate = soundfile.read(folder / "samples" / f"{kind}_pairs_0.wav")
        assert rate == 16_000 and len(samples) == 62 * 256 and np.isfinite(samples).all()
    assert (folder / "samples_during" / "000005" / "samples" / "pairs_0.png").is_file()
    assert "has no MIDI file of the same name" in (folder / "quarantine.tsv").read_text()
    with (folder / "metrics.csv").open() as file:
        columns = set(csv.DictReader(file).fieldnames or [])
    assert {"val/mel_l1", "val/kl", "train/mel", "train/kl", "train/stop"} <= columns
    assert "http" not in (folder / "report.html").read_text().replace("http-equiv", "")


def test_the_evaluation_has_its_floors(home: Path) -> None:
    folder = home / "outputs" / "evaluated"
    call("evaluate", folder, f"ckpt={home / 'outputs' / 'one'}", "num_songs=1")
    with (folder / "synthesis.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["mean", "linear", "model", "rebuilt"]
    assert float(rows["linear"]["l1_nats"]) < float(rows["mean"]["l1_nats"])
    assert (folder / "pairs.png").is_file() and (folder / "report.html").is_file()


@pytest.mark.skipif(find_spec("basic_pitch") is None, reason="needs the extra `perceptual`")
def test_the_evaluation_listens_to_notes(home: Path) -> None:
    folder = home / "outputs" / "heard"
    call("evaluate", folder, f"ckpt={home / 'outputs' / 'one'}", "task=synthesis", "num_songs=1", "task.perceptual_songs=1")
    with (folder / "synthesis.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["mean", "linear", "model", "rebuilt", "true"]
    f1 = {name: float(row["note_f1"]) for name, row in rows.items()}
    assert 0.5 < f1["true"] <= 1 and f1["true"] > f1["mean"] and float(rows["true"]["l1_nats"]) == 0


def test_a_score_becomes_sound(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "my.flac"
    call("synthesise", home / "outputs" / "played", f"run={home / 'outputs' / 'one'}", f"score={home / 'my.mid'}", f"out={out}")
    samples, rate = soundfile.read(out)
    assert rate == 16_000 and 1.8 <= len(samples) / rate <= 6.1 and np.abs(samples).max() > 0.5
    assert (home / "outputs" / "played" / "my.png").is_file()
    (home / "piano.mid").write_bytes(tune(78, program=0).dumps_midi())
    capsys.readouterr()
    call("synthesise", home / "outputs" / "piano", f"score={home / 'piano.mid'}")
    assert "note: Acoustic Grand Piano played by Violin: the model was trained on Violin" in capsys.readouterr().err
    assert (home / "outputs" / "piano" / "piano.wav").is_file()


def test_a_piece_is_generated_played_and_restyled(home: Path) -> None:
    for number, style in ((0, "folk"), (0, "jazz"), (1, "folk"), (1, "jazz"), (2, "folk"), (2, "jazz")):
        write(home / "genres" / style / f"{style}{number}.wav", sound(number + 10 * (style == "jazz"), seconds=3.0))
    tiny = ["task=style_transfer", "data=audio_folder", "trainer=smoke", "model.dim=16", "model.num_blocks=1", "~sampling",
            "discriminator.channels=8", "data.segment_frames=32", "data.batch_size=2", "data.prepare_workers=1"]  # fmt: skip
    outputs = home / "outputs"
    call("train", outputs / "transfer", *tiny, f"data.root={home / 'genres'}", f"cache_dir={home / 'cache'}")
    folder = outputs / "performed"
    call("perform", folder, "style=jazz", f"transfer={outputs / 'transfer'}", "source=folk", "num_bars=1", "ckpt=bundled")
    played, performed = (soundfile.read(folder / f"{name}.wav")[0] for name in ("played", "performance"))
    assert len(played) == len(performed) > 8000 and not np.array_equal(played, performed)
    assert len(Score(folder / "score.mid").tracks)
    call("perform", home / "outputs" / "plain", f"score={home / 'my.mid'}", f"out={home / 'plain.wav'}")
    assert (home / "plain.wav").is_file() and not (home / "outputs" / "plain" / "played.wav").exists()


def test_what_can_not_be_played_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, one = home / "outputs", f"run={home / 'outputs' / 'one'}"
    Score(480).dump_midi(home / "empty.mid")
    drums = Score(480)
    drums.tracks.append(Track(is_drum=True))
    drums.tracks[0].notes.append(Note(0, 480, 36, 90))
    drums.dump_midi(home / "drums.mid")
    for options, message in (
        ([], "score is missing: give a score, score=my.mid"),
        ([f"score={home / 'empty.mid'}"], "it holds no notes"),
        ([f"score={home / 'drums.mid'}"], "no notes for the instruments that the model knows"),
        ([f"score={home / 'my.mid'}", f"out={home / 'my.mid'}"], "the suffix must be one of"),
        ([f"score={home / 'my.mid'}", f"out={home / 'nowhere' / 'x.wav'}"], "there is no folder"),
        ([f"score={home / 'my.mid'}", f"out={home / 'pairs' / 'song0.wav'}"], "exists; give another name, or overwrite=true"),
        ([f"score={home / 'none.mid'}"], "none.mid: there is no such file; give one of .abc, "),
    ):
        assert message in fails(capsys, "synthesise", out / "failed", one, *options)
    score = f"score={home / 'my.mid'}"
    for option, message in (
        ("transfer=last", "style=NAME too"), ("intensity=0.5", "are of restyling"), ("source=folk", "are of restyling"),
        ("num_bars=4", "are of a generated piece"), ("seed=3", "are of a generated piece"), ("ckpt=bundled", "score= gives one"),
    ):  # fmt: skip
        assert message in fails(capsys, "perform", out / "failed", score, option)
    assert "run=last: no checkpoints/last.ckpt of task=synthesis under" in fails(
        capsys, "synthesise", home / "elsewhere" / "failed", score
    )


def test_a_wrong_run_and_a_folder_without_pairs_are_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(home / "pairs" / "lonely.wav", (home / "alone").mkdir() or home / "alone" / "lonely.wav")
    where = [f"cache_dir={home / 'cache'}", f"data.root={home / 'alone'}"]
    assert "holds no pair of an audio and a MIDI file" in fails(capsys, "train", home / "outputs" / "no", *TINY, *where)
    level = [*TINY, f"data.root={home / 'pairs'}", f"cache_dir={home / 'cache'}", "level=basic", "~sampling"]
    level = [option for option in level if not option.startswith("sampling.")]
    assert "warmup is 2000 steps, as long as the whole run of 10 or longer" in fails(
        capsys, "train", home / "outputs" / "no", *level
    )
    folder = [option.replace("paired_folder", "audio_folder") for option in TINY]
    assert "data.score=true: this data has no scores" in fails(capsys, "train", home / "outputs" / "no", *folder, *where)
