"""Generated mels: what replaces the inputs of a vocoder is the model's way there and back, and the audio stays the real one."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from etude.core.checkpoints import LastCheckpoint
from etude.models.wave.magnitudes import Magnitudes
from etude.models.wave.vocos import Vocos
from etude.tasks.mel_inverter import MelInverter
from etude.tasks.style_transfer import StyleTransfer
from etude.tasks.vocoder import Vocoder
from etude.techniques.data.generated_mels import GeneratedMels
from tests.tasks.test_style_transfer import CONTRACT
from tests.tasks.test_style_transfer import task as style_transfer
from tests.tasks.test_style_transfer import trained as with_weights
from tests.toys import ToyGan, same, trainer, weights

STYLES = ("rock", "folk")  # the model knows jazz, too, and has them in another order


def tones(rows: int = 3, num_frames: int = 16) -> dict[str, Tensor]:
    """Decaying tones, two styles of so many rows."""
    hop, rate = CONTRACT.hop_length, CONTRACT.sample_rate
    time = torch.arange(num_frames * hop) / rate
    pitches = 220 * 2 ** (torch.arange(2 * rows).view(2, rows, 1) / 5)
    samples = 0.4 * torch.sin(2 * torch.pi * pitches * time) * torch.exp(-4 * time)
    return {"samples": samples, "mel": CONTRACT.normalise(CONTRACT.log_mel(samples))}


class Tones(pl.LightningDataModule):
    contract, styles = CONTRACT, STYLES

    def train_dataloader(self) -> DataLoader:
        return DataLoader([tones()] * 4, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([tones()], batch_size=None)


def vocoder(kind: str = "inverter") -> Any:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.AdamW, lr=2e-3)
    if kind == "inverter":
        network = partial(Magnitudes, dim=16, num_layers=1, hidden_dim=32)
        return MelInverter(model=network, contract=CONTRACT, optimizer=optimizer)
    network = partial(Vocos, dim=16, num_layers=1, hidden_dim=32)
    return Vocoder(model=network, contract=CONTRACT, optimizer=optimizer, loss_weights={"generator/adversarial": 0.0})


def technique(folder: Path, model: Any = None, **options: Any) -> GeneratedMels:
    path = folder / "transfer.ckpt"
    path.write_bytes(b"the model") if not path.exists() else None

    def load(path: Path) -> tuple[Any, None]:
        return model or with_weights(style_transfer()), None

    return GeneratedMels(transfer=str(path), find=lambda ckpt, option, offers: Path(ckpt), load=load, **options)


def started(made: GeneratedMels, task: Any, data: Any = None) -> GeneratedMels:
    run = trainer(Path(), max_steps=4)
    run._data_connector.attach_data(task, datamodule=data or Tones())
    made.setup(run, task, "fit")
    return made


@pytest.mark.parametrize("kind", ["inverter", "vocos"])
def test_all_inputs_are_the_way_there_and_back_of_their_own_style(tmp_path: Path, kind: str) -> None:
    batch, task = tones(), vocoder(kind)
    made = started(technique(tmp_path, share=1.0), task)
    found = made.transform_batch(task, batch)
    model: StyleTransfer = with_weights(style_transfer())
    for number, style in enumerate(STYLES):
        log_mel = CONTRACT.denormalise(batch["mel"][number])
        ways = [
            model.translate(model.translate(log_mel, source=style, target=way), source=way, target=style)
            for way in model.styles
            if way != style
        ]
        given = CONTRACT.denormalise(task.inputs(found)["mel"][number])
        assert min(float((given - way).abs().max()) for way in ways) < 1e-4
        assert (given - log_mel).abs().max() > 0.1
    assert torch.equal(found["samples"], batch["samples"]) and torch.equal(found["mel"], batch["mel"])
    assert not task.inputs(found)["mel"].is_inference()


def test_a_share_of_the_segments_is_replaced_and_others_stay(tmp_path: Path) -> None:
    batch, task = tones(rows=40, num_frames=4), vocoder()
    made = started(technique(tmp_path, share=0.25), task)
    kept = (task.inputs(made.transform_batch(task, batch))["mel"] == batch["mel"]).flatten(2).all(-1)
    assert 40 < int(kept.sum()) < 75  # of 80; a quarter is replaced on average
    one, other = (task.inputs(made.transform_batch(task, batch))["mel"] for _ in range(2))
    assert torch.equal(one, other)


def test_the_input_of_an_inverter_changes_and_what_it_has_to_find_stays() -> None:
    task, batch = vocoder(), tones()
    moved = batch["mel"].clone().add_(0.1)
    for inputs, change in ((batch["mel"], 0.0), (moved, 0.1 * CONTRACT.scale)):
        given = task.with_inputs(batch, {"mel": inputs})
        drawn, found = (task._drawn(each, torch.Generator().manual_seed(3)) for each in (batch, given))
        torch.testing.assert_close(found[1], drawn[1] + change)
        assert torch.equal(drawn[0], found[0]) and torch.equal(drawn[2], found[2])
    mel = moved.requires_grad_()
    loss = task.losses(task.with_inputs(batch, {"mel": mel}))["log_magnitude"]
    assert torch.autograd.grad(loss, mel)[0].abs().sum() > 0


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    class Stop(pl.Callback):
        def on_train_batch_start(self, run: pl.Trainer, *_: Any) -> None:
            if run.global_step == 4:  # the end of an epoch
                raise StopError

    def fit(folder: str, *more: pl.Callback, resume: Path | None = None) -> dict[str, Any]:
        task, last = vocoder(), LastCheckpoint(path=tmp_path / folder / "last.ckpt", every_n_steps=4)
        run = trainer(tmp_path / folder, max_steps=8, callbacks=[technique(tmp_path, share=0.5), *more, last])
        with suppress(StopError):
            run.fit(task, datamodule=Tones(), ckpt_path=resume, weights_only=True)
        return weights(task)

    whole = fit("whole")
    fit("half", Stop())
    assert same(whole, fit("rest", resume=tmp_path / "half" / "last.ckpt"))


def test_wrong_requests_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"generated_mels\.share is 0, must be in \(0, 1\]"):
        GeneratedMels(share=0)
    with pytest.raises(ValueError, match=r"technique generated_mels is for vocoders, and ToyGan makes no audio"):
        started(technique(tmp_path), ToyGan())
    with pytest.raises(ValueError, match=r"the data of this MelInverter have none; choose data=arranged"):
        started(technique(tmp_path), vocoder(), pl.LightningDataModule())
    with pytest.raises(ValueError, match=r"transfer\.ckpt does not know the style jazz of the data, only folk, rock"):
        data = Tones()
        data.styles = ("folk", "jazz")  # type: ignore[assignment]
        started(technique(tmp_path, style_transfer(styles=("folk", "rock"))), vocoder(), data)
    with pytest.raises(ValueError, match=r"holds a Vocoder; give a checkpoint of task=style_transfer"):
        started(technique(tmp_path, vocoder("vocos")), vocoder())


@pytest.mark.parametrize("restored_first", [False, True])  # Lightning restores the state after setup
def test_a_resumed_run_keeps_its_transfer_model(tmp_path: Path, restored_first: bool) -> None:
    state = started(technique(tmp_path), vocoder()).state_dict()
    started(technique(tmp_path), vocoder()).load_state_dict(state)
    (tmp_path / "transfer.ckpt").write_bytes(b"another model")
    again = technique(tmp_path)
    steps = [lambda: started(again, vocoder()), lambda: again.load_state_dict(state)]
    with pytest.raises(ValueError, match=r"got its mels from .*but here the transfer model is .*give the same one"):
        for step in steps[::-1] if restored_first else steps:
            step()
