"""The model of styles that comes with the package: it restyles in a fresh clone, and says what it is."""

import io
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from symusic import Note, Score, Tempo, Track

from etude.audio.files import read_audio
from etude.audio.griffin_lim import GriffinLim
from etude.audio.mel import MelContract
from etude.core import bundled
from etude.core.audio_protocols import Synthesises
from etude.core.checkpoint_search import find_checkpoint
from etude.core.protocols import Composes, Restyles
from etude.core.weights_file import read_weights
from etude.music.arrangement import arrange
from etude.render.scores import render
from etude.run.parts import load_task
from etude.run.starting import model_to_restyle, named_start
from etude.transfer.requests import asked
from tests.core.test_checkpoint_files import run
from tests.test_levels import composed
from tests.test_run import ROOT, call, fails
from tests.test_starting import texts

STYLES = ("folk", "rock", "jazz")


def song(path: Path, *, style: str = "folk", rate: int = 22_050) -> Path:
    """A scale that the arranger has never met, played in a style."""
    tune = Score(480)
    tune.tempos.append(Tempo(0, 100))
    tune.tracks.append(Track(program=40))
    for place, pitch in enumerate((62, 66, 69, 74, 73, 69, 66, 64, 67, 71, 74, 76, 73, 69, 64, 62) * 2):
        tune.tracks[0].notes.append(Note(240 * place, 240, pitch, 90))
    soundfile.write(path, render(arrange(tune, style), sample_rate=rate).T, rate)
    return path


@pytest.fixture(scope="module")
def task() -> Any:
    return load_task(bundled.STYLES)[0]


def mel_of(path: Path, task: Any) -> torch.Tensor:
    samples, _ = read_audio(path, sample_rate=task.contract.sample_rate, mono=True)
    mel: torch.Tensor = task.contract.log_mel(samples)[0]
    return mel


def test_it_is_small_whole_and_names_no_place(task: Any) -> None:
    assert bundled.STYLES.stat().st_size < 1_700_000
    assert task.styles == STYLES and task.contract == MelContract()
    assert all(torch.isfinite(value).all() for value in task.state_dict().values())
    recipe = read_weights(bundled.STYLES)["etude"]["recipe"]
    assert not [text for text in texts(recipe) if text.startswith(("/", "~/"))]
    assert "styles.safetensors" in bundled.CARD.read_text()


def test_the_package_carries_it() -> None:
    root = Path(bundled.__file__).parents[1]
    project = tomllib.loads((root.parents[1] / "pyproject.toml").read_text())
    carried = [path for pattern in project["tool"]["setuptools"]["package-data"]["etude"] for path in root.glob(pattern)]
    assert set(bundled.MODELS.values()) <= set(carried)


def test_in_a_fresh_clone_a_song_comes_nearer_to_the_style(task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = song(tmp_path / "song.wav")
    before = task.style_distances(mel_of(file, task))
    assert min(before, key=lambda style: before[style]) == "folk"
    for style in ("rock", "jazz"):
        out = tmp_path / f"{style}.wav"
        call("transfer", tmp_path / "outputs" / style, f"in={file}", f"style={style}", "source=folk", f"out={out}")
        told = capsys.readouterr().err
        assert "no run that restyles audio" in told and "ckpt=bundled" in told and "180 tunes" in told
        after = task.style_distances(mel_of(out, task))
        assert after[style] < 0.7 * before[style] and after[style] < after["folk"]


def test_it_restyles_what_is_being_played(tmp_path: Path) -> None:
    piped = ["live=true", "in=-", "out=-", "style=jazz", "source=folk"]
    folders = [f"outputs={tmp_path / 'outputs'}", f"hydra.run.dir={tmp_path / 'live'}"]
    heard = song(tmp_path / "song.wav", rate=16_000).read_bytes()
    done = subprocess.run(
        [sys.executable, "transfer.py", *piped, *folders], cwd=ROOT, input=heard, capture_output=True, timeout=300
    )
    assert done.returncode == 0 and b"ckpt=bundled" in done.stderr and b"latency" in done.stderr
    samples, rate = soundfile.read(io.BytesIO(done.stdout), always_2d=True)
    assert (rate, samples.shape) == (16_000, soundfile.read(tmp_path / "song.wav", always_2d=True)[0].shape)


def test_it_is_named_and_a_run_that_exists_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = str(tmp_path)
    assert model_to_restyle("bundled", outputs) == bundled.STYLES
    run(tmp_path / "other", "vocoder", age=0)
    capsys.readouterr()
    assert model_to_restyle(None, outputs, option="transfer") == bundled.STYLES
    assert "transfer=bundled" in capsys.readouterr().err
    own = run(tmp_path / "own", "style_transfer", age=1)
    assert model_to_restyle(None, outputs) == own
    with pytest.raises(ValueError, match="ckpt=last: no checkpoints"):
        model_to_restyle("last", str(tmp_path / "nowhere"))


def test_what_is_asked_for_tells_which_bundled_model_is_meant(tmp_path: Path) -> None:
    for offers, path in ((None, bundled.PATH), (Composes, bundled.PATH), (Restyles, bundled.STYLES)):
        assert find_checkpoint("bundled", str(tmp_path), offers=offers) == path
    assert find_checkpoint("bundled", str(tmp_path), kind="style_transfer") == bundled.STYLES
    with pytest.raises(ValueError, match=r"vocoder.ckpt=bundled: no model of task=mel_inverter or task=vocoder comes with Etude"):
        find_checkpoint("bundled", str(tmp_path), offers=Synthesises, option="vocoder.ckpt")
    for chosen, path in (("stargan", bundled.STYLES), ("classifier", bundled.PATH), ("language_model", bundled.PATH)):
        assert named_start(composed(f"task={chosen}", "weights=bundled")) == path


def test_what_it_does_not_know_is_one_line(task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = song(tmp_path / "song.wav")
    told = fails(capsys, "transfer", tmp_path / "run", "ckpt=bundled", f"in={file}", "style=metal")
    assert "style=metal is unknown; the model knows folk, rock, jazz" in told
    vocoder = GriffinLim(MelContract(sample_rate=44_100, n_fft=2048, hop_length=512, n_mels=128, f_max=16_000.0))
    options: dict[str, Any] = {"style": "jazz", "source": "folk", "reference": None, "intensity": 1.0}
    with pytest.raises(ValueError, match=r"the vocoder was made for another mel contract \(.*44100"):
        asked(task, vocoder, **options)
