"""The programs as a user calls them: one life of a model on a folder of files, and what happens to bad input."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from symusic import Score

from etude.run import performing
from etude.run import programs as run
from etude.run.recipes import spelled_out
from etude.tasks.language_model import LanguageModel
from tests import toys
from tests.songs import song, write_songs

ROOT = Path(__file__).parents[1]
TINY = [
    "data=folder", "trainer=smoke", "logger=csv", "model.dim=32", "model.num_layers=1", "model.num_heads=2",
    "model.num_kv_heads=null",
    "data.max_len=256", "data.max_eval_len=512", "data.batch_size=2", "data.prepare_workers=1", "save_every=4",
    "sampling.num_samples=1", "sampling.num_bars=1", "sampling.audio=false", "sampling.max_new_tokens=200",
]  # fmt: skip


def call(program: str, folder: Path, *overrides: str) -> Any:
    """Runs `program` in this process, in a run folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    options = [f"outputs={folder.parent}", *spelled_out(list(overrides))]
    if program == "train" and toys.accelerator != "cpu":
        options.append(f"trainer.accelerator={toys.accelerator}")
    conf = ROOT / "conf" / {"evaluate": "evaluation", "generate": "generation"}.get(program, "")
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose(program, overrides=options, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(folder)
            cfg.hydra.overrides.task = options
            cfg.hydra.job.config_name = program
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return getattr(performing if program in ("synthesise", "perform") else run, program)(cfg)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs, one corrupt file, and the outputs of one small run on them."""
    home = tmp_path_factory.mktemp("home")
    write_songs(home / "songs")
    (home / "songs" / "folk" / "broken.mid").write_bytes(b"MThd\x00\x00")
    call("train", home / "outputs" / "one", *TINY, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}")
    return home


def fails(capsys: pytest.CaptureFixture[str], program: str, folder: Path, *overrides: str) -> str:
    """The one line that a failing call prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        call(program, folder, *overrides)
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_run_leaves_what_the_readme_says(home: Path) -> None:
    folder = home / "outputs" / "one"
    for name in ("config.yaml", "environment.txt", "metrics.csv", "report.html", "quarantine.tsv",
                 "checkpoints/best.ckpt", "checkpoints/last.ckpt", "samples/000.mid", "samples/000.png"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert "broken.mid" in (folder / "quarantine.tsv").read_text()
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("val/nll") for row in rows) and any(row.get("train/nll") for row in rows)
    assert "http" not in (folder / "report.html").read_text().replace("http-equiv", "")


def test_generate_follows_wishes_and_seed(home: Path) -> None:
    out = home / "outputs"
    wishes = ["num_samples=2", "num_bars=2", "genre=folk", "key=G major", "tempo_bpm=90", "audio=true", "max_new_tokens=200"]
    for name in ("g1", "g2"):
        call("generate", out / name, f"ckpt={out / 'one'}", *wishes)
    call("generate", out / "g3", f"ckpt={out / 'one'}", *wishes, "seed=1")
    first, again, other = ((out / name / "samples" / "000.mid").read_bytes() for name in ("g1", "g2", "g3"))
    assert first == again and first != other
    assert (out / "g1" / "samples" / "001.wav").stat().st_size > 10_000
    assert "data:audio/mpeg;base64" in (out / "g1" / "report.html").read_text()


def test_generate_and_evaluate_use_the_best_weights_as_the_samples_of_training_do(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded: list[Path] = []

    def load(path: Path) -> Any:
        loaded.append(path)
        return load_task(path)

    load_task = run.load_task
    monkeypatch.setattr(run, "load_task", load)
    call("generate", tmp_path / "g", f"ckpt={home / 'outputs' / 'one'}", "num_samples=1", "num_bars=1", "audio=false")
    call("evaluate", tmp_path / "e", f"ckpt={home / 'outputs' / 'one'}", "num_samples=0", "splits=[val]")
    assert loaded == [home / "outputs" / "one" / "checkpoints" / "best.ckpt"] * 2


def test_generate_continues_a_prompt(home: Path) -> None:
    prompt = home / "prompt.mid"
    song(99, bars=2).dump_midi(prompt)
    call("generate", home / "outputs" / "p", f"ckpt={home / 'outputs' / 'one'}", f"prompt={prompt}", "num_bars=3",
         "num_samples=1", "audio=false", "max_new_tokens=400")  # fmt: skip
    made = Score(str(home / "outputs" / "p" / "samples" / "000.mid"))
    opening = {(n.time, n.pitch) for t in Score(str(prompt)).tracks for n in t.notes}
    notes = {(n.time * 480 // made.ticks_per_quarter, n.pitch) for t in made.tracks for n in t.notes}
    assert opening <= notes and max(t for t, _ in notes) < 3 * 4 * 480


def test_evaluate_a_checkpoint(home: Path) -> None:
    folder = home / "outputs" / "e"
    call("evaluate", folder, f"ckpt={home / 'outputs' / 'one'}", "num_samples=2", "num_bars=1", "splits=[val]",
         "max_new_tokens=200")  # fmt: skip
    with (folder / "likelihood.csv").open() as file:
        row = next(csv.DictReader(file))
    assert float(row["nats_per_token"]) > 0 and float(row["bits_per_note"]) > 0
    for name in ("metrics.csv", "histograms.csv", "copying.csv", "metrics.png", "report.html"):
        assert (folder / name).stat().st_size > 0


def test_evaluate_a_folder(home: Path) -> None:
    folder = home / "outputs" / "f"
    call("evaluate", folder, f"files={home / 'songs'}")
    assert "broken.mid" in (folder / "quarantine.tsv").read_text()
    with (folder / "metrics.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["empty bars"]["pieces mean"]) == 0.0  # as the songs were made
    assert float(rows["groove consistency"]["pieces mean"]) > float(rows["groove consistency"]["shuffled mean"])


def test_resume_takes_the_options_of_its_run_and_must_beat_its_best(home: Path) -> None:
    one, two = home / "outputs" / "one", home / "outputs" / "two"
    call("train", two, f"ckpt={one}", "trainer.max_steps=14", "optimizer.lr=0.9", "~sampling")
    saved = torch.load(two / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 14 and saved["etude"]["batches_trained"] == 14
    recipe = saved["etude"]["recipe"]
    assert recipe["model"]["dim"] == 32 and recipe["optimizer"]["lr"] == 0.9  # the run's options, and this command's
    best = [torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] for folder in (one, two)]
    assert best == [10, 10]  # a learning rate of 0.9 did not help


def test_bad_data_is_told_in_one_line(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mid").write_text("not midi")
    tries = {"missing": "missing", "empty": "empty", "bad": "x.mid"}
    for name, expected in tries.items():
        line = fails(capsys, "train", tmp_path / "run" / name, *TINY, f"data.root={tmp_path / name}",
                     f"cache_dir={tmp_path / 'cache'}")  # fmt: skip
        assert expected in line


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("genre=polka", ["polka", "classical", "folk"]),
        ("key=H major", ["H major", "major"]),
        ("num_samples=0", ["num_samples is 0"]),
        ("metre=17/4", ["metre 17/4", "shorter bars"]),
        ("temperature=-1", ["temperature"]),
        ("prompt=nowhere.mid", ["nowhere.mid"]),
        ("ckpt=nowhere.ckpt", ["nowhere.ckpt", "ckpt=last"]),
    ],
)
def test_bad_wishes_are_told_in_one_line(home: Path, capsys: pytest.CaptureFixture[str], wish: str, expected: list[str]) -> None:
    line = fails(capsys, "generate", home / "outputs" / "bad", f"ckpt={home / 'outputs' / 'one'}", wish)
    assert all(word in line for word in expected), line


def test_bad_checkpoints_are_told_in_one_line(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for name in ("text.ckpt", "other.ckpt"):
        line = fails(capsys, "generate", tmp_path / "run", f"ckpt={tmp_path / name}")
        assert name in line
    line = fails(capsys, "train", tmp_path / "run2", f"ckpt={home / 'outputs' / 'one'}", "tokenizer=tsd")
    assert "tokenizer" in line


def test_a_run_does_not_go_on_with_another_optimizer(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It ended in "KeyError: 'step'"; from the weights a new run may start, as the line says."""
    one = home / "outputs" / "one"
    for option, name in (("optimizer=adamw", "AdamW"), ("optimizer=lion", "lion"), ("experiment=baseline", "AdamW")):
        line = fails(capsys, "train", tmp_path / "run", f"ckpt={one}", option)
        assert f"trained with the optimizer muon, and {name} can't" in line and "weights=" in line, line
    call("train", tmp_path / "new", *TINY, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}", f"weights={one}",
         "optimizer=adamw", "trainer.max_steps=2")  # fmt: skip
    assert torch.load(tmp_path / "new" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] > 0


def test_help_is_quick_and_readable() -> None:
    shown = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "data=folder data.root=" in shown and "chorales" in shown
    code = "import sys, etude.run.programs; print({'torch', 'pytorch_lightning', 'music21', 'muspy'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "set()"  # what makes start-up slow is imported late


def _listen() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits deafness to Ctrl-C


def program(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_listen,
        **options,
    )


def test_two_ranks_split_or_whole_are_the_same(home: Path) -> None:
    """ddp and fsdp give the same weights: decay, clipping by player and the schedule see whole matrices in both.

    With AdamW, since Muon's bfloat16 makes much of the last bits of a gradient; tests/optim/test_muon_on_shards.py holds Muon.
    """
    options = [option for option in TINY if not option.startswith(("sampling.", "trainer=", "model.num_kv"))]
    saved = {}
    for trainer in ("ddp", "fsdp"):
        folder = home / "outputs" / trainer
        # A grid model and more ranks than rows: some ranks validate on nothing.
        done = program("train.py", *options, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}", "~sampling",
                       "tokenizer=satb", "model=grid", f"hydra.run.dir={folder}", f"trainer={trainer}", "technique=[]",
                       "optimizer=adamw",
                       "trainer.accelerator=cpu", "trainer.max_steps=4", "trainer.val_check_interval=2",
                       "trainer.precision=32-true", "trainer.gradient_clip_val=0.1", "model.dim=64")  # fmt: skip
        output, _ = done.communicate(timeout=300)
        assert done.returncode == 0, output
        saved[trainer] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved[trainer]["global_step"] == 4
    for name, value in saved["ddp"]["state_dict"].items():
        torch.testing.assert_close(saved["fsdp"]["state_dict"][name], value, atol=1e-5, rtol=1e-4)


def interrupted(name: str, *options: str, ready: Callable[[], Any]) -> str:
    """Starts a program, presses Ctrl-C as soon as it is `ready`, and returns what it said."""
    running = program(name, *options)
    try:
        deadline = time.monotonic() + 240
        while not ready() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 130 and "Traceback" not in output, output
    return str(output)


def check_interrupted_training(folder: Path, options: Sequence[str]) -> None:
    """Ctrl-C in a run that would go on for long leaves its checkpoint, whole, and says how to go on."""
    metrics = folder / "metrics.csv"
    own = [option for option in options if not option.startswith("save_every")]
    long = ["trainer.max_steps=100000", "trainer.val_check_interval=20", "save_every=100000", f"hydra.run.dir={folder}"]
    output = interrupted("train.py", *own, *long, ready=lambda: metrics.exists() and metrics.stat().st_size)
    assert f"`python train.py ckpt={folder}` continues this run" in output
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == saved["etude"]["batches_trained"] > 0
    assert not list((folder / "checkpoints").glob("*.part"))


def test_ctrl_c_keeps_what_was_trained(home: Path) -> None:
    options = [option for option in TINY if not option.startswith("sampling.")]
    places = [f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}", "~sampling"]
    check_interrupted_training(home / "outputs" / "stopped", [*options, *places])


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_that_sigterm_stopped_in_validation_goes_on_in_its_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, folder = home / "outputs" / "one", home / "outputs" / "preempted"

    def validation_step(self: LanguageModel, batch: Any, batch_idx: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        earlier(self, batch, batch_idx)

    earlier = LanguageModel.validation_step
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(LanguageModel, "validation_step", validation_step)
        call("train", folder, *TINY, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}")
    assert end.value.code == 128 + signal.SIGTERM
    assert f"stopped at step 5 by SIGTERM (exit code 143); `python train.py ckpt={folder}`" in capsys.readouterr().err
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    curve = folder / "metrics.csv"
    with curve.open("a") as file:  # what a run that was killed later had logged after its checkpoint
        file.write(",".join("7" for _ in curve.read_text().splitlines()[0].split(",")) + "\n")
    call("train", folder, f"ckpt={folder}")
    assert rows_of(whole) == rows_of(folder)
    states = [torch.load(place / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for place in (whole, folder)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (folder / "report.html").is_file() and not list(folder.glob("config_*.yaml"))
    call("train", home / "outputs" / "branch", f"ckpt={folder}", "~sampling")  # there is no step left to train
    assert torch.load(home / "outputs" / "branch" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10


def test_a_checkpoint_runs_no_foreign_code(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    checkpoint = torch.load(home / "outputs" / "one" / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["etude"]["recipe"]["task"]["_target_"] = "os.system"
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    assert "os.system" in fails(capsys, "generate", tmp_path / "run", f"ckpt={tmp_path / 'evil.ckpt'}")
