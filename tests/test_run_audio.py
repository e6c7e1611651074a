"""The programs on audio as a user calls them: one life of a style model on a folder of genres, and what bad input meets."""

import base64
import csv
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from etude.audio.mel import MelContract
from etude.core.task import Task
from etude.core.technique import Technique
from etude.run import recipes
from tests.data.audio.files import sound, write
from tests.songs import write_songs
from tests.test_run import TINY as TINY_LANGUAGE_MODEL
from tests.test_run import call, check_interrupted_training, fails, interrupted

GENRES = ("bangla_folk", "jazz", "rock")
TINY = [
    "task=style_transfer", "data=audio_folder", "trainer=smoke", "model.dim=16", "model.num_blocks=1",
    "discriminator.channels=8", "data.segment_frames=32", "data.batch_size=2", "data.prepare_workers=1", "save_every=4",
    "sampling.num_songs=1", "sampling.seconds=1",
]  # fmt: skip
FORMATS = ((8000, 1, "wav"), (44_100, 2, "flac"), (22_050, 1, "wav"), (48_000, 2, "mp3"), (96_000, 6, "wav"))
OGG = (32_000, 2, "ogg")  # has a random serial number, and with it another place in the splits each time
BAD = {
    "rock/text.wav": "not audio",
    "rock/silent.wav": "silent",
    "rock/nan.wav": "not finite",
    "jazz/brief.wav": "shorter than a segment",
    "jazz/cut.mp3": "",
    "bangla_folk/empty.wav": "",
}


def many(seed: int, *, rate: int, channels: int, seconds: float = 3.0) -> np.ndarray:
    """Samples [n, c], another sound in each channel."""
    return np.stack([sound(seed * 10 + i, seconds=seconds, rate=rate) for i in range(channels)], axis=1)


def write_genres(root: Path, genres: tuple[str, ...] = GENRES) -> Path:
    """A folder of genres, each with a file of every format."""
    for place, genre in enumerate(genres):
        for number, (rate, channels, suffix) in enumerate(FORMATS):
            samples = many(100 * place + number, rate=rate, channels=channels)
            write(root / genre / f"{genre}{number}.{suffix}", samples, rate=rate)
    return root


def write_bad(root: Path) -> Path:
    """The files of `BAD`."""
    good = many(77, rate=16_000, channels=1)
    for name in ("rock/text.wav", "bangla_folk/empty.wav"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("this is no audio" if "text" in name else "")
    write(root / "rock/silent.wav", 0 * good, rate=16_000)
    write(root / "rock/nan.wav", np.where(np.arange(len(good))[:, None] == 9000, np.nan, good), rate=16_000, subtype="FLOAT")
    write(root / "jazz/brief.wav", good[:4000], rate=16_000)
    whole = write(root / "jazz/cut.mp3", good, rate=16_000).read_bytes()
    (root / "jazz/cut.mp3").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of genres, good and bad files, and the outputs of one small run on them."""
    home = tmp_path_factory.mktemp("home")
    write_bad(write_genres(home / "genres"))
    call("train", home / "outputs" / "one", *here(home))
    return home


def here(home: Path, *, sampling: bool = True) -> list[str]:
    options = TINY if sampling else [*(option for option in TINY if not option.startswith("sampling.")), "~sampling"]
    return [*options, f"data.root={home / 'genres'}", f"cache_dir={home / 'cache'}"]


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def quarantined(path: Path) -> dict[str, str]:
    """File -> reason."""
    with path.open() as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file, delimiter="\t")}


# --- training ---


def test_a_run_leaves_what_the_readme_says(home: Path) -> None:
    folder = home / "outputs" / "one"
    fakes = {f"fake_{t}_from_{s}_0" for s in GENRES for t in GENRES if s != t}
    reals = {f"real_{s}_0" for s in GENRES}
    found = {path.name for path in (folder / "samples").iterdir()}
    assert found == {f"{name}.wav" for name in reals | fakes} | {f"{name}.png" for name in fakes} | {"samples.csv"}
    for name in reals | fakes:
        samples, rate = soundfile.read(folder / "samples" / f"{name}.wav")
        assert rate == 16_000 and len(samples) == 62 * 256  # the whole frames of a second
        assert 0.5 < np.abs(samples).max() <= 1
    for name in ("config.yaml", "environment.txt", "curves.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (folder / name).stat().st_size > 0, name
    with (folder / "metrics.csv").open() as file:
        columns = csv.DictReader(file).fieldnames or []
    assert {"val/frechet", "train/generator/adversarial", "train/discriminator/game"} <= set(columns)
    assert "val/l1" not in columns  # songs of other names have no truth


def test_the_report_plays_everything_offline(home: Path, tmp_path: Path) -> None:
    text = (home / "outputs" / "one" / "report.html").read_text()
    without_media = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)  # which spells any word by chance
    assert "http" not in without_media.replace("http-equiv", "")
    sounds = re.findall(r"data:audio/mpeg;base64,([A-Za-z0-9+/=]+)", text)
    assert len(sounds) == 3 + 6 and text.count("data:image/png;base64,") == 6 + 1
    (tmp_path / "first.mp3").write_bytes(base64.b64decode(sounds[0]))
    samples, rate = soundfile.read(tmp_path / "first.mp3")
    assert rate == 16_000 and abs(len(samples) / rate - 1) < 0.1


def test_what_was_left_out_is_listed_with_reasons(home: Path) -> None:
    found = quarantined(home / "outputs" / "one" / "quarantine.tsv")
    assert found.keys() == BAD.keys()
    for name, reason in BAD.items():
        assert reason in found[name] and len(found[name]) > 10, (name, found[name])


def test_styles_picks_a_pair_in_its_order_and_a_run_continues_with_its_options(home: Path) -> None:
    one, two = home / "outputs" / "pair", home / "outputs" / "pair_on"
    call("train", one, *here(home, sampling=False), "styles=[rock,bangla_folk]", "trainer.max_steps=4")
    saved = state(one / "checkpoints" / "last.ckpt")
    assert saved["etude"]["styles"] == ["rock", "bangla_folk"] and not (one / "samples").exists()
    call("train", two, f"ckpt={one}", "trainer.max_steps=7", "optimizer.lr=0.0005")
    after = state(two / "checkpoints" / "last.ckpt")
    recipe = after["etude"]["recipe"]
    assert after["global_step"] == after["etude"]["batches_trained"] == 7 and after["etude"]["styles"] == ["rock", "bangla_folk"]
    assert recipe["model"]["dim"] == 16 and recipe["data"]["segment_frames"] == 32  # the run's options
    assert recipe["optimizer"]["lr"] == 0.0005 and recipe["trainer"]["max_steps"] == 7  # and this command's
    assert torch.equal(after["etude"]["statistics"], saved["etude"]["statistics"])


def test_phases_of_one_command_each_start_from_the_weights_before(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[Path, dict[str, torch.Tensor]]] = []
    start_from = recipes.start_from

    def watched(task: Task, path: Path, techniques: list[Technique]) -> None:
        start_from(task, path, techniques)
        started.append((path, {name: value.detach().cpu().clone() for name, value in task.state_dict().items()}))

    monkeypatch.setattr(recipes, "start_from", watched)
    folder = home / "outputs" / "phases"
    pairs = ["stage.first=[bangla_folk,rock]", "stage.then=[bangla_folk,jazz]"]
    call("train", folder, *here(home), "stage=two_pairs", *pairs, "trainer.max_steps=4", "trainer.val_check_interval=2")
    best = folder / "1_first" / "checkpoints" / "best.ckpt"
    assert [path for path, _ in started] == [best]  # the first phase starts from nothing
    before = {name: value.cpu() for name, value in state(best)["state_dict"].items()}
    assert before.keys() == started[0][1].keys() and all(torch.equal(before[k], v) for k, v in started[0][1].items())
    for phase, styles in (("1_first", ["bangla_folk", "rock"]), ("2_then", ["bangla_folk", "jazz"])):
        saved = state(folder / phase / "checkpoints" / "last.ckpt")
        assert saved["global_step"] == 4 and saved["etude"]["styles"] == styles
        assert saved["etude"]["recipe"]["styles"] == styles
        there, back = f"fake_{styles[1]}_from_{styles[0]}_0.wav", f"fake_{styles[0]}_from_{styles[1]}_0.wav"
        assert (folder / phase / "samples" / there).is_file() and (folder / phase / "samples" / back).is_file()
        for name in ("metrics.csv", "report.html", "config.yaml"):
            assert (folder / phase / name).stat().st_size > 0
    after = state(folder / "2_then" / "checkpoints" / "last.ckpt")["trained_weights"]  # the best so far may be the first
    assert any(not torch.equal(before[name], after[name]) for name in before)  # and learns


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["weights={one}", "model.dim=24"], ["weights=", "other sizes", "model="]),
        (["weights={one}", "styles=[rock,jazz]"], ["weights=", "styles"]),
        (["stage=two_pairs", "ckpt={one}"], ["ckpt=", "weights="]),
        (["ckpt={one}", "data.contract.n_fft=512"], ["n_fft", "512", "1024"]),
        (["ckpt={one}", "data.contract.n_mels=32"], ["n_mels", "32", "64"]),
        (["ckpt={one}", "styles=[rock,jazz]"], ["styles", "rock", "bangla_folk"]),
        (["styles=[rock,polka]"], ["polka", "bangla_folk, jazz, rock"]),
        (["styles=[rock]"], ["2 styles", "rock"]),
        (["data=chorales"], ["tokenizer", "task="]),
        (["data.root=null"], ["data.root"]),
    ],
)
def test_parts_that_do_not_fit_are_told_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], expected: list[str]
) -> None:
    given = [option.format(one=home / "outputs" / "one") for option in options]
    rest = [
        option for option in here(home, sampling=False) if option.partition("=")[0] not in {o.partition("=")[0] for o in given}
    ]
    rest = [o for o in rest if not o.startswith("data.")] if "data=chorales" in given else rest
    line = fails(capsys, "train", tmp_path / "run", *rest, *given)
    assert all(word in line for word in expected), line


def test_bad_folders_are_told_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write(tmp_path / "hollow" / "rock" / "a.wav", many(1, rate=8000, channels=1), rate=8000)
    (tmp_path / "hollow" / "jazz").mkdir()
    write(tmp_path / "alone" / "rock" / "a.wav", many(1, rate=8000, channels=1), rate=8000)
    for genre in ("rock", "jazz"):
        write(tmp_path / "bad" / genre / "silent.wav", np.zeros(16_000), rate=8000)
    tries = {"hollow": "hollow/jazz", "alone": "subfolder", "bad": "jazz/silent.wav: is silent", "missing": "missing"}
    for name, expected in tries.items():
        line = fails(capsys, "train", tmp_path / "run" / name, *TINY, f"data.root={tmp_path / name}",
                     f"cache_dir={tmp_path / 'cache'}")  # fmt: skip
        assert expected in line, line


# --- transfer ---


def transfer(home: Path, name: str, *options: str) -> Path:
    folder = home / "outputs" / name
    call("transfer", folder, f"ckpt={home / 'outputs' / 'one'}", *options)
    return folder


@pytest.mark.parametrize(("rate", "channels", "suffix"), [*FORMATS, OGG])
def test_a_file_keeps_its_rate_channels_and_length(home: Path, tmp_path: Path, rate: int, channels: int, suffix: str) -> None:
    source = write(tmp_path / f"song.{suffix}", many(9, rate=rate, channels=channels), rate=rate)
    out = tmp_path / "deep" / "restyled.wav"
    transfer(home, "t", f"in={source}", "style=jazz", "source=rock", f"out={out}")
    before, after = soundfile.info(source), soundfile.info(out)
    assert (after.samplerate, after.channels, after.frames) == (rate, channels, before.frames)
    assert not np.allclose(soundfile.read(source)[0], soundfile.read(out)[0], atol=0.01)


def test_intensity_0_gives_the_input_back_and_half_lies_between(home: Path, tmp_path: Path) -> None:
    source = home / "genres" / "rock" / "rock1.flac"
    for intensity in (0, 0.5, 1):
        transfer(home, "t", f"in={source}", "style=jazz", f"intensity={intensity}", f"out={tmp_path / f'{intensity}.wav'}")
    given = soundfile.read(source)[0]
    made = [soundfile.read(tmp_path / f"{intensity}.wav")[0] for intensity in (0, 0.5, 1)]
    mels = [MelContract(sample_rate=44_100).log_mel(torch.from_numpy(x.T.astype(np.float32))) for x in (given, *made)]
    change = [float((mel - mels[0]).abs().mean()) for mel in mels[1:]]
    assert np.abs(made[0] - given).max() < 1e-4 and 0.05 < change[1] < change[2]


def test_without_out_the_result_lies_in_the_runs_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = transfer(home, "blend", f"in={home / 'genres' / 'rock' / 'rock0.wav'}", "style={bangla_folk:0.5,jazz:0.5}")
    assert (folder / "rock0_bangla_folk+jazz.wav").stat().st_size > 10_000
    assert "taken as rock" in capsys.readouterr().err  # the only style that was not asked for


def test_a_folder_keeps_its_subfolders_and_lists_what_is_bad(home: Path, tmp_path: Path) -> None:
    transfer(home, "f", f"in={home / 'genres'}", "style=jazz", "source=rock", f"out={tmp_path / 'all'}")
    bad = {name for name in BAD if name != "jazz/brief.wav"}  # short is no fault here
    files = [path for path in (home / "genres").rglob("*.*") if str(path.relative_to(home / "genres")) not in bad]
    for path in files:
        out = tmp_path / "all" / path.relative_to(home / "genres").parent / f"{path.stem}_jazz.wav"
        before, after = soundfile.info(path), soundfile.info(out)
        assert (after.samplerate, after.channels, after.frames) == (before.samplerate, before.channels, before.frames)
    assert len(list((tmp_path / "all").rglob("*.wav"))) == len(files) == len(FORMATS) * 3 + 1
    found = quarantined(tmp_path / "all" / "quarantine.tsv")
    assert {str(Path(name).relative_to(home / "genres")) for name in found} == bad
    assert not list((tmp_path / "all").rglob(".*"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["style=polka"], ["style=polka", "bangla_folk, jazz, rock"]),
        (["style=null"], ["style is missing", "bangla_folk, jazz, rock"]),
        (["style={rock:0.5,jazz:0.6}"], ["add up to 1"]),
        (["source=rock", "style=rock"], ["style=rock"]),
        (["source=polka"], ["source=polka"]),
        (["intensity=1.5"], ["intensity is 1.5", "[0, 1]"]),
        (["intensity=-0.1"], ["intensity is -0.1", "[0, 1]"]),
        (["in=null"], ["in is missing"]),
        (["in=nowhere.wav"], ["nowhere.wav"]),
        (["in={genres}/rock/text.wav"], ["text.wav"]),
        (["in={genres}/rock/silent.wav"], ["silent.wav", "silent"]),
        (["in={genres}/jazz/cut.mp3"], ["cut.mp3"]),
        (["out={genres}/rock/rock0.wav"], ["rock0.wav", "input itself"]),
        (["out={genres}/rock/rock1.flac"], ["rock1.flac", "exists", "overwrite=true"]),
        (["out={genres}/x.txt"], ["x.txt", ".wav"]),
        (["out=/proc/nowhere/x.wav"], ["/proc/nowhere/x.wav", "can't be written"]),
        (["in={genres}", "out={genres}"], ["input folder"]),
        (["block_frames=0"], ["block_frames is 0"]),
        (["vocoder=neural", "vocoder.ckpt=nowhere.ckpt"], ["nowhere.ckpt", "no such file"]),
        (["vocoder=neural", "vocoder.ckpt={one}/checkpoints/last.ckpt"], ["StyleTransfer", "task=vocoder"]),
        (["ckpt=nowhere.ckpt"], ["nowhere.ckpt"]),
    ],
)
def test_bad_wishes_are_told_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], expected: list[str]
) -> None:
    places = {"{genres}": str(home / "genres"), "{one}": str(home / "outputs" / "one")}
    given = [re.sub("{genres}|{one}", lambda found: places[found[0]], option) for option in options]
    usual = [f"ckpt={home / 'outputs' / 'one'}", f"in={home / 'genres' / 'rock' / 'rock0.wav'}", "style=jazz"]
    names = {option.partition("=")[0] for option in given}
    before = sorted((home / "genres").rglob("*"))
    line = fails(capsys, "transfer", tmp_path / "run", *(o for o in usual if o.partition("=")[0] not in names), *given)
    assert all(word in line for word in expected), line
    assert sorted((home / "genres").rglob("*")) == before  # nothing half-written, nothing beside the sources


# --- other checkpoints, other programs ---


@pytest.fixture(scope="module")
def others(home: Path) -> Path:
    """The outputs with a tiny language model's run and those of two tiny vocoders."""
    songs = [f"data.root={write_songs(home / 'songs')}", f"cache_dir={home / 'cache'}", "~sampling", "trainer.max_steps=2"]
    tiny = [option for option in TINY_LANGUAGE_MODEL if not option.startswith("sampling.")]
    call("train", home / "outputs" / "language", *tiny, *songs)
    small = ["model.dim=16", "model.num_layers=1", "model.hidden_dim=16"]
    mine = [o for o in here(home) if o.startswith(("data", "trainer", "cache_dir", "save_every"))]
    for task in ("vocoder", "mel_inverter"):
        call("train", home / "outputs" / task, f"task={task}", *mine, *small, "trainer.max_steps=4")
    return home / "outputs"


def test_a_checkpoint_of_another_task_is_told(home: Path, others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wish = [f"in={home / 'genres' / 'rock' / 'rock0.wav'}", "style=jazz"]
    for name, kind in (("language", "LanguageModel"), ("vocoder", "Vocoder")):
        line = fails(capsys, "transfer", others / "x", f"ckpt={others / name}", *wish)
        assert kind in line and "task=style_transfer" in line
    for name, kind in (("one", "StyleTransfer"), ("vocoder", "Vocoder")):
        assert kind in fails(capsys, "generate", others / "x", f"ckpt={others / name}")
    line = fails(capsys, "evaluate", others / "x", f"ckpt={others / 'one'}", "task=language_model")
    assert "task=language_model" in line and "style_transfer" in line
    line = fails(capsys, "evaluate", others / "x", f"ckpt={others / 'language'}", "task=style_transfer")
    assert "task=style_transfer" in line and "language_model" in line
    assert "val/mel_l1" in fails(capsys, "evaluate", others / "x", f"ckpt={others / 'vocoder'}")


def test_a_trained_vocoder_may_build_the_sound(home: Path, others: Path, tmp_path: Path) -> None:
    source = home / "genres" / "rock" / "rock1.flac"
    chosen: dict[str, list[str]] = {
        task: ["vocoder=neural", f"vocoder.ckpt={others / task / 'checkpoints' / 'last.ckpt'}"]
        for task in ("vocoder", "mel_inverter")
    }
    for name, vocoder in (chosen | {"griffin_lim": []}).items():
        transfer(home, "v", f"in={source}", "style=jazz", f"out={tmp_path / name}.wav", *vocoder)
    made = {name: soundfile.read(tmp_path / f"{name}.wav")[0] for name in (*chosen, "griffin_lim")}
    for name in chosen:
        assert made[name].shape == made["griffin_lim"].shape == soundfile.read(source)[0].shape
        assert not np.allclose(made[name], made["griffin_lim"], atol=1e-3)


def test_evaluate_writes_the_table(home: Path) -> None:
    folder = home / "outputs" / "scores"
    call("evaluate", folder, "task=style_transfer", f"ckpt={home / 'outputs' / 'one'}", "num_songs=1", "task.classifier_steps=5")
    with (folder / "style_transfer.csv").open() as file:
        rows = list(csv.DictReader(file))
    ways = [(s, t) for s in GENRES for t in GENRES if s != t]
    expected = {(s, t, row) for s, t in ways for row in ("copy", "affine", "model")}
    assert len(rows) == len(expected) and {(row["source"], row["target"], row["row"]) for row in rows} == expected
    for row in rows:
        assert 0 <= float(row["accuracy"]) <= 1 and float(row["frechet_bel2"]) >= 0
        assert all(row[name] == "nan" for name in ("l1_nats", "mcd_db", "onset_f", "chroma"))  # there is no truth
        assert (row["real_time_factor"] != "") == (row["row"] == "model")
    for source, target in ways:
        assert (folder / f"{source}_to_{target}.png").stat().st_size > 0
    assert "http" not in (folder / "report.html").read_text().replace("http-equiv", "")


# --- Ctrl-C ---


def test_ctrl_c_in_training_keeps_it_and_says_how_to_go_on(home: Path) -> None:
    check_interrupted_training(home / "outputs" / "stopped", here(home, sampling=False))


def test_ctrl_c_in_transfer_leaves_no_half_written_file(home: Path, tmp_path: Path) -> None:
    write(tmp_path / "long.wav", np.tile(many(5, rate=44_100, channels=2), (60, 1)), rate=44_100)
    out = tmp_path / "out"
    begun: list[float] = []

    def in_the_middle() -> bool:
        if out.is_dir() and list(out.iterdir()) and not begun:
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() > begun[0] + 1

    output = interrupted("transfer.py", f"ckpt={home / 'outputs' / 'one'}", f"in={tmp_path / 'long.wav'}", "style=jazz",
                         f"out={out / 'x.wav'}", f"hydra.run.dir={tmp_path / 'run'}", ready=in_the_middle)  # fmt: skip
    assert "stopped by Ctrl-C" in output and list(out.iterdir()) == []
