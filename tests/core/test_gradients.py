"""Losses at another place: right, in the run's precision, and nothing that training goes on from is disturbed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from etude.core.gradients import gradients_enabled
from etude.core.task import Task
from etude.core.technique import Composition, GradientSlot, Power, StepSlot, Technique
from etude.models.mel.image_pool import ImagePool
from tests.toys import PairsData, same, trainer, weights


class Probe(Task):
    """Regression with all that a pass may disturb: dropout, BatchNorm, a trace, an image pool, a log."""

    logged_metrics = ("val/loss",)

    def __init__(self, **options: Any) -> None:
        options.setdefault("optimizer", partial(torch.optim.AdamW, lr=1e-2))
        super().__init__(**options)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8))
        self.pool = ImagePool(6)
        self.precision: torch.dtype | None = None

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out = self.net(batch["a"])
        self.precision = out.dtype
        past, _ = self.pool.swap(out.detach(), torch.zeros(len(out), dtype=torch.long))
        self.trace = {"out": out}
        self.log("train/level", out.mean().detach())
        return {"fit": (out - batch["b"]).square().mean(), "pool": (out - past).square().mean()}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.net(batch["a"]).mean())


def other_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {name: torch.randn(5, 8, generator=generator) for name in "ab"}


class Asks(Technique):
    """Asks for losses and gradients of another batch in every hook, and changes nothing by it."""

    gradient_slot: ClassVar[GradientSlot] = GradientSlot.PROJECT
    step_slot: ClassVar[StepSlot] = StepSlot.PLAN

    def __init__(self, ask: Callable[[Task], None]) -> None:
        super().__init__()
        self.ask = ask

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.ask(pl_module)

    def extra_losses(self, task: Any, batch: Any, losses: Any) -> dict[str, Tensor]:
        self.ask(task)
        return {}

    def transform_gradients(self, task: Task) -> None:
        self.ask(task)

    def after_step(self, task: Task) -> None:
        self.ask(task)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ask(pl_module)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.ask(pl_module)


class Curve(pl.Callback):
    """What was logged of each batch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(folder: Path, *techniques: Technique, steps: int = 6, **options: Any) -> tuple[Task, list[dict[str, float]]]:
    torch.manual_seed(0)
    task, curve = Probe(seed=3), Curve()
    options = {"val_check_interval": 2, **options}
    trainer(folder, max_steps=steps, callbacks=[*techniques, curve], **options).fit(task, PairsData())
    return task, curve.seen


def ask_everything(task: Task) -> None:
    grads = [p.grad for p in task.parameters()]
    before = (task.trace, task.batches_trained, torch.get_rng_state())
    elsewhere = {name: p.detach() * 0.5 for name, p in task.named_parameters()}
    plain, moved = task.losses_at(other_batch()), task.losses_at(other_batch(), parameters=elsewhere)
    assert plain["fit"] != moved["fit"]
    found = task.gradient_of(other_batch())
    assert found.keys() == {name for name, _ in task.named_parameters()} and all(g.isfinite().all() for g in found.values())
    assert all(now is then for now, then in zip((p.grad for p in task.parameters()), grads, strict=True))
    assert task.trace is before[0] and task.batches_trained == before[1] and torch.equal(torch.get_rng_state(), before[2])
    assert not task.in_losses_at


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_training_is_bit_for_bit_the_same_with_and_without_asking(tmp_path: Path, options: dict[str, Any]) -> None:
    alone, curve = fit(tmp_path, **options)
    asked, other = fit(tmp_path, Asks(ask_everything), **options)
    assert same(weights(alone), weights(asked)) and curve == other
    assert isinstance(alone, Probe) and isinstance(asked, Probe)
    pools = [[value for value, _ in task.pool._stored] for task in (alone, asked)]
    assert len(pools[0]) == 6 and all(torch.equal(one, two) for one, two in zip(*pools, strict=True))


def test_a_plain_second_call_does_disturb(tmp_path: Path) -> None:
    def plainly(task: Task) -> None:
        task.losses(other_batch())

    assert not same(weights(fit(tmp_path)[0]), weights(fit(tmp_path, Asks(plainly))[0]))


def test_the_precision_is_the_runs_in_every_hook(tmp_path: Path) -> None:
    seen: set[torch.dtype | None] = set()

    def ask(task: Any) -> None:
        task.gradient_of(other_batch())
        seen.add(task.precision)

    fit(tmp_path, Asks(ask), precision="bf16-mixed")
    assert seen == {torch.bfloat16}


def test_the_gradient_is_that_of_backward() -> None:
    torch.manual_seed(0)
    task = Probe(loss_weights={"fit": 3.0})
    task.net[3].p = 0.0
    terms = task.losses_at(other_batch())
    (3 * terms["fit"] + terms["pool"]).backward()
    found = task.gradient_of(other_batch())
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad)
    task.net[0].weight.requires_grad_(False)
    assert "net.0.weight" not in task.gradient_of(other_batch())


def test_other_weights_are_those_of_a_task_that_has_them() -> None:
    torch.manual_seed(0)
    one, two = Probe().eval(), Probe().eval()
    moved = {name: p.detach() for name, p in two.named_parameters()}
    assert one.losses_at(other_batch(), parameters=moved)["fit"] == two.losses_at(other_batch())["fit"]
    mine, theirs = one.gradient_of(other_batch(), parameters=moved), two.gradient_of(other_batch())
    assert same(mine, theirs)
    bias = {"net.4.bias": moved["net.4.bias"]}
    assert one.gradient_of(other_batch(), parameters=bias).keys() == bias.keys()
    with pytest.raises(ValueError, match=r"parameters names 'nett', which Probe does not have; its names begin with net"):
        one.losses_at(other_batch(), parameters={"nett": torch.zeros(1)})


def test_two_passes_can_share_one_backward() -> None:
    task = Probe()  # BatchNorm in training: buffers written between the passes must not break the first one's graph
    first, second = task.losses_at(other_batch()), task.losses_at(other_batch())
    assert first["fit"] == second["fit"]  # the same draws
    (first["fit"] + second["fit"]).backward()


def test_in_inference_mode_where_nothing_can_be_differentiated(tmp_path: Path) -> None:
    found: list[dict[str, Tensor]] = []

    class Attack(pl.Callback):
        def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            assert torch.is_inference_mode_enabled()
            found.append(pl_module.gradient_of(batch))
            with gradients_enabled():
                moved = {**batch, "a": batch["a"].clone().requires_grad_()}
                (slope,) = torch.autograd.grad(pl_module.losses_at(moved)["fit"], moved["a"])
            assert slope.shape == batch["a"].shape and slope.abs().sum() > 0

    task = Probe()
    trainer(tmp_path, max_steps=1, callbacks=[Attack()]).validate(task, PairsData(), verbose=False)
    assert len(found) == 2 and all(g.isfinite().all() for g in found[0].values())


def test_no_graph_under_no_grad() -> None:
    task = Probe()
    with torch.no_grad():
        assert not task.losses_at(other_batch())["fit"].requires_grad
        assert task.gradient_of(other_batch())


class Half(Technique):
    """Trains on half of the losses of weights moved by a hundredth of the gradient: an inner loop of one step."""

    claims: ClassVar[frozenset[Power]] = frozenset({Power.LOSSES})

    def make_losses(self, task: Any, batch: Any) -> dict[str, Tensor]:
        own = dict(task.named_parameters())
        slope = task.gradient_of(batch, parameters=own, create_graph=True)
        moved = {name: p - 0.01 * slope[name] for name, p in own.items()}
        found = task.losses_at(batch, parameters=moved, keep_state=False)
        assert task.trace["out"].requires_grad
        return {name: value / 2 for name, value in found.items()}


def test_one_technique_may_own_how_losses_are_made(tmp_path: Path) -> None:
    plain, curve = fit(tmp_path, steps=2)
    made, other = fit(tmp_path, Half(), steps=2)
    assert not same(weights(plain), weights(made))
    assert other[0]["train/fit"] == pytest.approx(curve[0]["train/fit"] / 2, rel=0.1) and other[0]["train/fit"] > 0
    assert made.net[1].num_batches_tracked == plain.net[1].num_batches_tracked  # type: ignore[union-attr, operator]

    class Also(Half):
        name = "also"  # type: ignore[assignment]

    class NoClaim(Half):
        claims = frozenset()

    class NoHook(Technique):
        claims = frozenset({Power.LOSSES})

    with pytest.raises(ValueError, match="both claim how the task's losses are made"):
        Composition([Half(), Also()])
    with pytest.raises(ValueError, match="must both override make_losses and claim"):
        Composition([NoHook()])


def test_split_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Probe()
    monkeypatch.setattr(type(task), "device_mesh", property(lambda self: "a mesh"))
    with pytest.raises(
        ValueError, match=r"gradient_of needs whole weights of Probe, but trainer=fsdp shards them; use trainer=ddp"
    ):
        task.gradient_of(other_batch())
