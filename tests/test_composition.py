"""Every technique, over a tiny language model, a toy GAN and a tiny style transfer with all its terms: off is the baseline,
on changes something or refuses with a reason, any order is one, killed and resumed equals uninterrupted.

Techniques are found in conf/technique: a new one is tested here without a word. One that guards against faults changes
nothing without a fault, so it is given one.
"""

import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from etude.core.checkpoints import LastCheckpoint
from etude.core.task import Task
from etude.core.technique import Technique
from etude.data.corpora import Folder
from etude.data.module import MusicDataModule
from etude.models.transformer import Transformer
from etude.music.satb import SatbGrid
from etude.tasks.language_model import LanguageModel
from tests.songs import write_songs
from tests.tasks.test_style_transfer import EVERY
from tests.tasks.test_style_transfer import task as style_transfer
from tests.toys import MelsData, PairsData, ToyGan, same, trainer, weights

CONF = Path(__file__).parents[1] / "conf" / "technique"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
TASKS = ["language_model", "gan", "restyler"]


def technique(name: str) -> Technique:
    node = OmegaConf.merge({"seed": 0}, OmegaConf.load(CONF / f"{name}.yaml"))[name]
    return instantiate(node, _convert_="all")


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("songs"))


def music(songs: Path, workers: int = 0) -> MusicDataModule:
    return MusicDataModule(
        corpus=Folder(str(songs)), tokenizer=SatbGrid, cache_dir=str(songs.parent / "cache"), max_len=256, max_eval_len=512,
        batch_size=2, batches_per_epoch=5, num_workers=workers, prepare_workers=1, transpose=[-2, 2], seed=1,
    )  # fmt: skip


def build(name: str, songs: Path, workers: int = 0) -> tuple[Task, pl.LightningDataModule]:
    torch.manual_seed(0)
    if name == "gan":
        return ToyGan(), PairsData(workers)
    if name == "restyler":  # terms that come and go, a generator of its own for each way, past outputs
        lazy: dict[str, Any] = {"r1_every": 3, "identity_every": 2, "identity_until": 9, "pool_size": 6}
        return style_transfer(loss_weights=EVERY, seed=1, **lazy), MelsData(workers)
    data = music(songs, workers)
    model = partial(Transformer, dim=16, num_layers=1, num_heads=2, dropout=0.1)
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    return LanguageModel(model=model, tokenizer=data.tokenizer, optimizer=optimizer, seed=1), data


def refusal(name: str, kind: str, songs: Path, folder: Path) -> str:
    """Why the technique can't be used with the task, as its setup says; empty where it can."""
    task, _ = build(kind, songs)
    try:
        technique(name).setup(trainer(folder, max_steps=1), task, "fit")
    except ValueError as error:
        return str(error)
    return ""


class Fault(pl.Callback):
    """Spoils one gradient of the third batch."""

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 2:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            gradients[-1].fill_(math.nan)


def is_finite(found: dict[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in found.values())


def fit(
    folder: Path, make: Callable[[], tuple[Task, Any]], techniques: list[pl.Callback], *, steps: int = 8,
    save_at: int = 1000, resume: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    task, data = make()
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=save_at)
    run = trainer(folder, max_steps=steps, callbacks=[*techniques, last], val_check_interval=4)
    run.fit(task, data, ckpt_path=resume, weights_only=True)
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    return {"trained": weights(task), "saved": saved["state_dict"]}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_on_changes_training_or_evaluation_or_refuses(tmp_path: Path, songs: Path, kind: str, name: str) -> None:
    if reason := refusal(name, kind, songs, tmp_path):
        assert f"technique {name} " in reason and type(build(kind, songs)[0]).__name__ in reason
        with pytest.raises(ValueError, match=f"technique {name} "):
            fit(tmp_path, lambda: build(kind, songs), [technique(name)])
        return
    off = fit(tmp_path / "off", lambda: build(kind, songs), [])
    again = fit(tmp_path / "again", lambda: build(kind, songs), [])
    on = fit(tmp_path / "on", lambda: build(kind, songs), [technique(name)])
    assert same(off["trained"], again["trained"])  # off is bit-identical to the baseline
    if technique(name).guards:
        assert same(off["trained"], on["trained"]) and same(off["saved"], on["saved"])
        spoilt = fit(tmp_path / "spoilt", lambda: build(kind, songs), [Fault()], steps=3)
        guarded = fit(tmp_path / "guarded", lambda: build(kind, songs), [technique(name), Fault()])
        assert not is_finite(spoilt["trained"]) and is_finite(guarded["trained"])
        return
    assert not (same(off["trained"], on["trained"]) and same(off["saved"], on["saved"]))


@pytest.mark.parametrize("kind", TASKS)
def test_any_order_of_any_set_is_one(tmp_path: Path, songs: Path, kind: str) -> None:
    names = [name for name in NAMES if not refusal(name, kind, songs, tmp_path)]
    chosen = random.Random(0).sample(names, min(5, len(names)))
    runs = [
        fit(tmp_path / str(i), lambda: build(kind, songs), [technique(name) for name in order])
        for i, order in enumerate((chosen, chosen[::-1]))
    ]
    assert same(runs[0]["trained"], runs[1]["trained"]) and same(runs[0]["saved"], runs[1]["saved"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", [None, *NAMES])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, songs: Path, kind: str, name: str | None, workers: int) -> None:
    if name and (reason := refusal(name, kind, songs, tmp_path)):
        pytest.skip(reason)
    stop = random.Random(f"{kind}{name}{workers}").randint(2, 11)
    chosen = [name] if name else []

    def run(folder: str, **options: Any) -> dict[str, Any]:
        return fit(tmp_path / folder, lambda: build(kind, songs, workers), [technique(n) for n in chosen], **options)

    whole = run("whole", steps=13)
    run("half", steps=stop)
    rest = run("rest", steps=13, resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]), f"stopped at {stop}"
    assert same(whole["saved"], rest["saved"])
