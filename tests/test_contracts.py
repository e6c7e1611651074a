"""The presets of the mel contract: for every task of audio, through training, transfer, stopping and starting again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from etude.audio.mel import MelContract
from etude.data.audio.bandwidth import left_out_band
from etude.data.audio.corpora import AudioFolder
from etude.run import again
from tests.data.audio.files import sound, write
from tests.test_run import call, fails

CONF = Path(__file__).parents[1] / "conf"
PRESETS = sorted(path.stem for path in (CONF / "contract").glob("*.yaml"))
CD = MelContract(sample_rate=44_100, n_fft=2048, hop_length=512, n_mels=128, f_max=16_000.0)
AUDIO = [
    ("style_transfer", "audio_folder"), ("stargan", "audio_folder"), ("cut", "arranged"), ("cyclegan", "arranged"),
    ("vocoder", "audio_folder"), ("vocoder", "arranged"), ("mel_inverter", "arranged"),
    ("grader", "arranged"), ("grader", "audio_folder"),
    ("synthesis", "paired_folder"), ("synthesis", "arranged"),
]  # fmt: skip
TINY = [
    "data=audio_folder", "trainer=smoke", "model.dim=16", "model.num_blocks=1", "discriminator.channels=8",
    "data.segment_frames=32", "data.batch_size=2", "data.prepare_workers=1", "trainer.max_steps=2",
    "trainer.val_check_interval=2", "sampling.num_songs=1", "sampling.seconds=0.5", "sampling.num_iters=2",
]  # fmt: skip


def composed(*options: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(options), return_hydra_config=True)


def contract_of(*options: str) -> MelContract:
    node: Any = OmegaConf.to_container(composed(*options).data.contract)
    return MelContract(**{name: value for name, value in node.items() if name != "_target_"})


@pytest.mark.parametrize(("task", "data"), AUDIO)
def test_presets_fit_every_task_and_data_and_single_settings_go_over_them(task: str, data: str) -> None:
    chosen = [f"task={task}", f"data={data}"]
    assert contract_of(*chosen, "contract=44k") == CD
    assert contract_of(*chosen, "contract=16k") == contract_of(*chosen)  # the default; a grader's has more bands
    assert contract_of(*chosen).n_mels == (128 if task == "grader" else 64)
    own = contract_of("data.contract.n_mels=96", *chosen, "contract=44k", "data.contract.f_max=20000")
    assert own.n_mels == 96 and own.f_max == 20_000 and own.sample_rate == 44_100


@pytest.mark.parametrize("preset", PRESETS)
def test_every_band_of_a_preset_hears_something(preset: str) -> None:
    made = contract_of("task=style_transfer", f"contract={preset}")
    assert bool((made.filterbank() > 0).any(dim=1).all())


def test_the_folder_of_a_command_that_is_started_again_depends_on_the_contract() -> None:
    folders = [again.stable_folder(composed("task=style_transfer", *more)) for more in ([], ["contract=16k"], ["contract=44k"])]
    assert folders[0] == folders[1] != folders[2]


# --- a run ---


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two styles at 44.1 kHz, and the outputs of a small run with contract=44k."""
    home = tmp_path_factory.mktemp("home")
    for place, style in enumerate(("folk", "rock")):
        for number in range(4):
            samples = sound(10 * place + number, seconds=2, rate=44_100, hertz=11_000 + 500 * number)  # beyond 16k
            write(home / "audio" / style / f"{style}{number}.wav", samples, rate=44_100)
    call("train", home / "outputs" / "one", *here(home), "contract=44k")
    return home


def here(home: Path, *, sampling: bool = True) -> list[str]:
    options = TINY if sampling else [*(option for option in TINY if not option.startswith("sampling.")), "sampling=[]"]
    return ["task=style_transfer", *options, f"data.root={home / 'audio'}", f"cache_dir={home / 'cache'}"]


def saved(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return found


def test_a_run_trains_samples_and_restyles_at_its_contract(home: Path, tmp_path: Path) -> None:
    one = home / "outputs" / "one"
    assert saved(one)["global_step"] == 2 and MelContract(**saved(one)["etude"]["contract"]) == CD
    assert soundfile.info(next((one / "samples").glob("fake_rock_*.wav"))).samplerate == 44_100
    bright = sound(3, seconds=2, rate=44_100, hertz=12_000.0)  # above what 16 kHz can hold
    source, out = write(tmp_path / "bright.wav", bright, rate=44_100), tmp_path / "out.wav"
    call("transfer", home / "outputs" / "t", f"ckpt={one}", f"in={source}", "style=rock", "source=folk", f"out={out}")
    samples, rate = soundfile.read(out)
    energy = np.abs(np.fft.rfft(samples)) ** 2
    assert rate == 44_100 and len(samples) == len(bright) and energy[16_000:].sum() > 0.1 * energy.sum()  # above 8 kHz
    tiny = ["num_songs=1", "task.classifier_steps=2"]
    call("evaluate", home / "outputs" / "e", "task=style_transfer", f"ckpt={one}", *tiny)
    assert (home / "outputs" / "e" / "style_transfer.csv").is_file()


def test_a_run_goes_on_with_its_contract_and_refuses_another(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, on = home / "outputs" / "one", home / "outputs" / "on"
    call("train", on, f"ckpt={one}", "trainer.max_steps=3")
    assert saved(on)["global_step"] == 3 and MelContract(**saved(on)["etude"]["contract"]) == CD
    line = fails(capsys, "train", home / "outputs" / "x", f"ckpt={one}", "contract=16k")
    assert "sample_rate 44100, here 16000" in line and "contract=" in line
    line = fails(capsys, "train", home / "outputs" / "x", *here(home), f"weights={one}")
    assert "other sizes" in line and "contract=" in line


def test_a_vocoder_of_another_contract_is_refused_with_the_remedy(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["model.dim=16", "model.num_layers=1", "model.hidden_dim=16"]
    options = [o for o in here(home) if o.startswith(("data", "trainer", "cache_dir"))]
    for preset in PRESETS:
        call("train", home / "outputs" / f"vocoder_{preset}", "task=vocoder", *options, *small, f"contract={preset}")
    wish = [f"ckpt={home / 'outputs' / 'one'}", f"in={home / 'audio' / 'folk' / 'folk0.wav'}", "style=rock", "source=folk"]
    line = fails(capsys, "transfer", home / "outputs" / "x", *wish, "vocoder=neural",
                 f"vocoder.ckpt={home / 'outputs' / 'vocoder_16k'}")  # fmt: skip
    assert "sample_rate 16000, here 44100" in line and "contract=" in line and "vocoder=griffin_lim" in line
    out = home / "neural.wav"
    call("transfer", home / "outputs" / "n", *wish, "vocoder=neural", f"vocoder.ckpt={home / 'outputs' / 'vocoder_44k'}",
         f"out={out}")  # fmt: skip
    assert soundfile.info(out).samplerate == 44_100


def test_scores_have_no_contract(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = fails(capsys, "train", tmp_path / "run", "data=chorales", "contract=44k")
    assert "contract=" in line and "scores" in line and "task=style_transfer" in line


# --- what is told ---


def rates(root: Path, *each: int) -> AudioFolder:
    for number, rate in enumerate(each):
        write(root / "a" / f"{number}.wav", sound(number, seconds=0.2, rate=rate), rate=rate)
    return AudioFolder(root=str(root))


@pytest.mark.parametrize(
    ("files", "contract", "told"),
    [
        ((44_100, 48_000, 16_000), MelContract(), True),
        ((44_100, 16_000), MelContract(), False),  # no more than half
        ((32_000, 22_050), MelContract(), False),
        ((44_100, 48_000), CD, False),
    ],
)
def test_files_that_hold_more_than_the_contract_are_told(
    tmp_path: Path, files: tuple[int, ...], contract: MelContract, told: bool
) -> None:
    found, _ = rates(tmp_path / "audio", *files).recordings(["a"], cache_dir=tmp_path / "cache", num_workers=1)
    lines = left_out_band(found, contract)
    assert len(lines) == told
    assert all("8,000 Hz" in line and "contract=44k" in line for line in lines)


def test_a_run_tells_it_once_and_not_with_the_wider_contract(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, count in ([], 1), (["contract=44k"], 0):
        capsys.readouterr()
        call("train", home / "outputs" / f"told{count}", *here(home, sampling=False), *more)
        assert capsys.readouterr().err.count("contract=44k keeps") == count
