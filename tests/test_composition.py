"""Every technique, over a tiny language model, a toy GAN, a tiny style transfer with all its terms, a tiny synthesis, grader,
classifier, representation, few shots and few-shot generation: off is the baseline, on changes something or refuses with a
reason, any order is one, killed and resumed equals uninterrupted; also sets of five.

Techniques are found in conf/technique: a new one is tested here without a word. One that guards against faults changes
nothing without a fault, so it is given one; one that observes must log something.
"""

import importlib
import math
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
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
from etude.core.technique import Composition, Technique
from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.models.symbolic.transformer import Transformer
from etude.objectives.views import Moco
from etude.tasks.classifier import Classifier
from etude.tasks.language_model import LanguageModel
from etude.tasks.representation import Representation
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from tests.songs import write_songs
from tests.tasks.test_few_shot import task as few_shot
from tests.tasks.test_few_shot import write_classes
from tests.tasks.test_few_shot_generation import task as few_shot_generation
from tests.tasks.test_grader import GradedData
from tests.tasks.test_grader import task as grader
from tests.tasks.test_style_transfer import EVERY
from tests.tasks.test_style_transfer import task as style_transfer
from tests.tasks.test_synthesis import task as synthesis
from tests.toys import MelsData, PairsData, PlayedData, ToyGan, same, trainer, weights

CONF = Path(__file__).parents[1] / "conf" / "technique"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
TASKS = [
    "language_model", "gan", "restyler", "synthesis", "grader", "classifier", "representation", "few_shot", "few_shot_generation",
]  # fmt: skip


class Matrix:
    """What the tests share: songs, a folder for teachers and the like, and each technique's options."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.songs = folder, write_songs(folder / "songs")
        self._options: dict[tuple[str, str], dict[str, Any]] = {}
        self._off: dict[str, dict[str, Any]] = {}

    def technique(self, name: str, kind: str) -> Technique:
        """As its file in conf/ sets it, under `matrix_options` of its test where eight steps would not show its effect."""
        if (name, kind) not in self._options:
            try:
                tests = importlib.import_module(f"tests.techniques.test_{name}")
            except ModuleNotFoundError:
                tests = None
            options = getattr(tests, "matrix_options", None)
            folder = self.folder / f"{name}_{kind}"
            folder.mkdir(parents=True, exist_ok=True)
            self._options[name, kind] = options(kind, folder, lambda: build(kind, self.songs)) if options else {}
        node = OmegaConf.merge({"seed": 0}, OmegaConf.load(CONF / f"{name}.yaml"))[name]
        return instantiate(node, _convert_="all", _partial_=True)(**self._options[name, kind])

    def off(self, kind: str) -> dict[str, Any]:
        """The baseline, trained once."""
        if kind not in self._off:
            self._off[kind] = fit(self.folder / f"off_{kind}", lambda: build(kind, self.songs), [])
        return self._off[kind]

    def refusal(self, kind: str, *names: str) -> str:
        """Why the techniques can't be used with the task, alone or together, as a setup says; empty where they can."""
        task, data = build(kind, self.songs)
        techniques = Composition(self.technique(name, kind) for name in names).techniques
        run = trainer(self.folder, max_steps=8, callbacks=list(techniques))
        run._data_connector.attach_data(task, datamodule=data)
        task.trainer = run
        try:
            task.setup("fit")
            for technique in techniques:
                technique.setup(run, task, "fit")
        except ValueError as error:
            return str(error)
        return ""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("matrix"))


def music(songs: Path, workers: int = 0, **options: Any) -> MusicDataModule:
    return MusicDataModule(
        **{
            "corpus": Folder(str(songs)), "tokenizer": SatbGrid, "cache_dir": str(songs.parent / "cache"), "max_len": 256,
            "max_eval_len": 512, "batch_size": 2, "batches_per_epoch": 5, "num_workers": workers, "prepare_workers": 1,
            "transpose": [-2, 2], "seed": 1, **options,
        }
    )  # fmt: skip


def halves(songs: Path) -> Path:
    """A file of labels beside the songs: whether a song is one of the first six."""
    path = songs.parent / "labels.csv"
    if not path.is_file():
        files = sorted(file.relative_to(songs).as_posix() for file in songs.rglob("*.mid"))
        path.write_text("file,half\n" + "".join(f"{name},{'first' if i < 6 else 'last'}\n" for i, name in enumerate(files)))
    return path


def build(name: str, songs: Path, workers: int = 0) -> tuple[Task, pl.LightningDataModule]:
    torch.manual_seed(0)
    if name == "gan":
        return ToyGan(), PairsData(workers)
    if name == "restyler":  # terms that come and go, a generator of its own for each way, past outputs
        lazy: dict[str, Any] = {"r1_every": 3, "identity_every": 2, "identity_until": 9, "pool_size": 6}
        return style_transfer(loss_weights=EVERY, seed=1, **lazy), MelsData(workers)
    if name == "grader":
        return grader(seed=1, optimizer=partial(torch.optim.AdamW, lr=1e-4)), GradedData(workers)
    if name == "synthesis":  # a variational network, which draws latents
        return synthesis(seed=1, loss_weights={"kl": 0.1}), PlayedData(workers)
    if name == "few_shot":  # second derivatives, and rates of the inner steps that are learnt
        return few_shot(write_classes(songs.parent / "classes"), "maml", num_workers=workers)
    if name == "few_shot_generation":  # the distance to adapted weights as the loss, and no trace of logits
        return few_shot_generation(write_classes(songs.parent / "classes"), "reptile", num_workers=workers)
    model = partial(Transformer, dim=16, num_layers=1, num_heads=2, dropout=0.1)
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    if name == "classifier":  # two heads, each with a network that gets a share of the other's
        data = music(songs, workers, controls=[], targets=["genre", "half"], labels_file=str(halves(songs)))
        return Classifier(
            model=partial(model, causal=False), tokenizer=data.tokenizer, sharing="cross_stitch", balance_classes=True,
            optimizer=optimizer, seed=1, **data.label_parts,
        ), data  # fmt: skip
    if name == "representation":  # a slow copy and a queue, which follow after each step
        remi = partial(MidiTokTokenizer, scheme="REMI", infill=False)
        data = music(songs, workers, tokenizer=remi, controls=[], infill=0.0, transpose=None)
        return Representation(
            model=partial(model, causal=False), objective=partial(Moco, queue_size=24, hidden_dim=16, projection_dim=8),
            tokenizer=data.tokenizer, optimizer=optimizer, seed=1,
        ), data  # fmt: skip
    data = music(songs, workers)
    return LanguageModel(model=model, tokenizer=data.tokenizer, optimizer=optimizer, seed=1), data


class Fault(pl.Callback):
    """Spoils one gradient of the third batch."""

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 2:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            gradients[-1].fill_(math.nan)


class KillError(Exception):
    """What the tests stop a run with."""


class Killer(pl.Callback):
    """Stops a run between two batches, after its checkpoint was written; its schedule does not know."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise KillError


class Terminator(pl.Callback):
    """Sends this process SIGTERM in the last batch of the validation after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.global_step == self.step and batch_idx == sum(trainer.num_val_batches) - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def is_finite(found: dict[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in found.values())


def fit(
    folder: Path, make: Callable[[], tuple[Task, Any]], techniques: list[pl.Callback], *, steps: int = 8,
    kill_at: int = 1000, terminate_at: int = 1000, resume: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    task, data = make()
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=kill_at)
    callbacks = [*techniques, Killer(kill_at), Terminator(terminate_at), last]
    run = trainer(folder, max_steps=steps, callbacks=callbacks, val_check_interval=4)
    with suppress(KillError, SystemExit):
        run.fit(task, data, ckpt_path=resume, weights_only=True)
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    logged, callbacks = set(run.callback_metrics), saved.get("callbacks", {})
    return {"trained": weights(task), "saved": saved["state_dict"], "logged": logged, "callbacks": callbacks}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_on_changes_training_or_evaluation_or_refuses(tmp_path: Path, matrix: Matrix, kind: str, name: str) -> None:
    made = matrix.technique(name, kind)
    if reason := matrix.refusal(kind, name):
        assert f"technique {name} " in reason and type(build(kind, matrix.songs)[0]).__name__ in reason
        with pytest.raises(ValueError, match=f"technique {name} "):
            fit(tmp_path, lambda: build(kind, matrix.songs), [made])
        return
    off = matrix.off(kind)
    on = fit(tmp_path / "on", lambda: build(kind, matrix.songs), [made])
    equal = same(off["trained"], on["trained"]) and same(off["saved"], on["saved"])
    if not (made.is_guard or made.only_observes):
        assert not equal
        return
    assert equal
    if made.only_observes:
        assert on["logged"] > off["logged"]
    else:
        spoilt = fit(tmp_path / "spoilt", lambda: build(kind, matrix.songs), [Fault()], steps=3)
        guarded = fit(tmp_path / "guarded", lambda: build(kind, matrix.songs), [matrix.technique(name, kind), Fault()])
        assert not is_finite(spoilt["trained"]) and is_finite(guarded["trained"])


@pytest.mark.parametrize("kind", TASKS)
def test_off_is_the_baseline_bit_for_bit(tmp_path: Path, matrix: Matrix, kind: str) -> None:
    again = fit(tmp_path, lambda: build(kind, matrix.songs), [])
    assert same(matrix.off(kind)["trained"], again["trained"])


def random_sets(kind: str, matrix: Matrix, count: int, seed: str) -> list[list[str]]:
    """Sets of five that can go together: none refuses the task or the others, no two claim one power."""
    draw = random.Random(f"{seed}{kind}")
    return [random_set(kind, matrix, draw) for _ in range(count)]


def random_set(kind: str, matrix: Matrix, draw: random.Random) -> list[str]:
    chosen: list[str] = []
    for name in draw.sample(NAMES, len(NAMES)):
        if matrix.refusal(kind, name) or {"packnet", "stages"} <= {*chosen, name}:  # here packnet has sections, not phases
            continue
        with suppress(ValueError):  # two claim one power
            if not chosen or not matrix.refusal(kind, *chosen, name):
                chosen.append(name)
        if len(chosen) == 5:
            break
    return chosen


@pytest.mark.parametrize("kind", TASKS)
def test_any_order_of_any_set_is_one_and_resumes(tmp_path: Path, matrix: Matrix, kind: str, matrix_seed: str) -> None:
    for number, chosen in enumerate(random_sets(kind, matrix, 3, matrix_seed)):
        folder = tmp_path / str(number)

        def run(folder: Path, names: list[str], **options: Any) -> dict[str, Any]:
            techniques = [matrix.technique(name, kind) for name in names]
            return fit(folder, lambda: build(kind, matrix.songs), techniques, **options)

        one, other = run(folder / "one", chosen), run(folder / "other", chosen[::-1])
        assert same(one["trained"], other["trained"]) and same(one["saved"], other["saved"]), chosen
        run(folder / "half", chosen, kill_at=3)
        rest = run(folder / "rest", chosen, resume=folder / "half" / "last.ckpt")
        assert same(one["trained"], rest["trained"]) and same(one["saved"], rest["saved"]), chosen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", [None, *NAMES])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, matrix: Matrix, kind: str, name: str | None, workers: int
) -> None:
    if name and (reason := matrix.refusal(kind, name)):
        pytest.skip(reason)
    stop = random.Random(f"{kind}{name}{workers}").randint(2, 11)
    chosen = [name] if name else []

    def run(folder: str, **options: Any) -> dict[str, Any]:
        techniques = [matrix.technique(n, kind) for n in chosen]
        return fit(tmp_path / folder, lambda: build(kind, matrix.songs, workers), techniques, **options)

    whole = run("whole", steps=13)
    run("half", steps=13, kill_at=stop)
    rest = run("rest", steps=13, resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]), f"stopped at {stop}"
    assert same(whole["saved"], rest["saved"])


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", [None, *NAMES])
def test_terminated_in_a_validation_and_resumed_equals_uninterrupted(
    tmp_path: Path, matrix: Matrix, kind: str, name: str | None
) -> None:
    if name and (reason := matrix.refusal(kind, name)):
        pytest.skip(reason)

    def run(folder: str, **options: Any) -> dict[str, Any]:
        techniques = [matrix.technique(name, kind)] if name else []
        return fit(tmp_path / folder, lambda: build(kind, matrix.songs), techniques, **options)

    whole, half = run("whole"), run("half", terminate_at=4)
    assert "LastCheckpoint" in half["callbacks"]
    rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])
    for one in (whole, rest):
        for timed in ("budget", "costs"):  # seconds
            one["callbacks"].get("LiveQuality", {}).pop(timed, None)
    assert str(whole["callbacks"]) == str(rest["callbacks"])
