"""A new pair of styles after another one, for style transfer: techniques against forgetting hold on to the first pair."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from etude.core.technique import Technique
from etude.optim.consolidation import quadratic
from etude.techniques.continual.agem import Agem
from etude.techniques.continual.ewc import Ewc
from etude.techniques.continual.forgetting import Forgetting
from etude.techniques.continual.gem import Gem
from etude.techniques.continual.packnet import PackNet
from etude.techniques.continual.replay import Replay
from etude.techniques.continual.si import Si
from etude.techniques.optim.stages import Stages
from tests.tasks.test_style_transfer import EVERY
from tests.tasks.test_style_transfer import task as style_transfer
from tests.toys import Mels, trainer, weights

STEPS = 6
TECHNIQUES = {
    "ewc": lambda: Ewc(strength=1e4, samples=8), "si": lambda: Si(strength=10.0), "replay": lambda: Replay(size=8),
    "agem": lambda: Agem(size=8), "gem": lambda: Gem(size=8), "packnet": PackNet,
}  # fmt: skip


class TwoPairs(Dataset[Any]):
    """Batches of two styles of three: the first two, then the first and the third."""

    def __len__(self) -> int:
        return 2 * STEPS

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        styles = torch.tensor([0, 1] if number < STEPS else [0, 2])
        mel = torch.stack([Mels().mel[4 * number + row, styles] for row in range(4)], dim=1)
        return {"mel": mel, "style": styles[:, None].repeat(1, 4)}


class PairsInTurn(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TwoPairs(), batch_size=None)

    def val_dataloader(self) -> Any:
        return DataLoader(TwoPairs(), batch_size=None)


class AtBoundary(Technique):
    """Keeps the weights with which the first phase ended."""

    def on_phase_end(self, task: Any) -> None:
        self.weights = weights(task)


def run(folder: Path, *techniques: Any, shared: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    task, boundary = style_transfer(loss_weights=EVERY, seed=1, shared=shared), AtBoundary()
    stages = Stages(stages=[{"name": "folk+rock", "max_steps": STEPS}, {"name": "folk+jazz"}])
    fitted = trainer(folder, max_steps=2 * STEPS, callbacks=[stages, boundary, *techniques], limit_val_batches=0)
    fitted.fit(task, PairsInTurn())
    return task, boundary.weights


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", sorted(TECHNIQUES))
def test_it_runs_with_networks_of_each_pair_and_with_one_for_all(tmp_path: Path, name: str, shared: bool) -> None:
    technique = TECHNIQUES[name]()
    task, before = run(tmp_path, technique, shared=shared)
    after = weights(task)
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    if isinstance(technique, PackNet):
        for key, owner in technique.owner.items():
            assert not (after[key] - before[key])[owner == 1].any()


def test_replay_goes_on_training_the_networks_of_the_first_pair(tmp_path: Path) -> None:
    def moved(*techniques: Any) -> bool:
        task, before = run(tmp_path, *techniques, shared=False)
        number = task.pairs.index((0, 1))
        after = weights(task)
        return any(not torch.equal(after[key], before[key]) for key in after if key.startswith(f"generators.{number}."))

    assert not moved() and moved(Replay(size=8))


def test_what_mattered_to_the_first_pair_moves_less(tmp_path: Path) -> None:
    held = Ewc(strength=1e6, samples=8)
    task, _ = run(tmp_path, held, shared=True)
    plain, _ = run(tmp_path, shared=True)
    with torch.no_grad():
        far, near = (quadratic(made, "x", held.fisher, held.centre)["generator/x"] for made in (plain, task))
    assert near < 0.5 * far


def test_its_matrix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"technique forgetting measures some pieces alone, which the data \(PairsInTurn\)"):
        run(tmp_path, Forgetting(), shared=True)
