"""Composition: order from slots, powers claimed once, losses only added."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from etude.core.technique import BatchSlot, Composition, GradientSlot, Power, Technique
from tests.toys import PairsData, ToyGan, same, trainer, weights

SOURCE = Path(__file__).parents[2] / "src" / "etude"


class Named(Technique):
    label: ClassVar[str] = "named"

    @property
    def name(self) -> str:
        return self.label


class Halve(Named):
    label = "halve"
    batch_slot = BatchSlot.MASK

    def transform_batch(self, task, batch):
        return {name: value / 2 for name, value in batch.items()}


class AddNoise(Named):
    label = "add_noise"
    batch_slot = BatchSlot.AUGMENT

    def transform_batch(self, task, batch):
        generator = self.generator(task.batches_trained)
        return {n: v + torch.randn(v.shape, generator=generator) for n, v in batch.items()}


class Penalty(Named):
    label = "penalty"

    def extra_losses(self, task, batch, losses):
        return {"generator/penalty": sum((p**2).sum() for p in task.ab.parameters())}


class Flip(Named):
    label = "flip"
    gradient_slot = GradientSlot.PROJECT

    def transform_gradients(self, task):
        for p in task.parameters():
            p.grad.neg_()


class Skip(Named):
    label = "skip"
    gradient_slot = GradientSlot.SKIP

    def transform_gradients(self, task):
        task.seen_norm = max(p.grad.norm() for p in task.parameters())
        task.zero_grad()


class Weigher(Named):
    label = "weigher"
    claims = frozenset({Power.WEIGHING})

    def weigh(self, task, losses):
        return sum(losses.values()) * 0.1


def fit(tmp_path: Path, techniques: list[Technique], **options: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    gan = ToyGan()
    trainer(tmp_path, max_steps=5, callbacks=techniques, **options).fit(gan, PairsData())
    return weights(gan)


def test_any_order_of_the_list_gives_the_same_weights(tmp_path: Path) -> None:
    kinds = [Halve, AddNoise, Penalty, Flip, Weigher]
    reference = fit(tmp_path, [kind() for kind in kinds])
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert same(reference, fit(tmp_path, [kinds[i]() for i in order]))


@pytest.mark.parametrize("kind", [Halve, AddNoise, Penalty, Flip, Weigher, Skip])
def test_each_hook_changes_training(tmp_path: Path, kind: type[Technique]) -> None:
    assert not same(fit(tmp_path, []), fit(tmp_path, [kind()]))


def test_slots_order_batches_and_gradients(tmp_path: Path) -> None:
    batch = {"a": torch.ones(2)}
    both = Composition([Halve(), AddNoise()]).transform_batch(ToyGan(), batch)["a"]
    assert torch.equal(both, AddNoise().transform_batch(ToyGan(), batch)["a"] / 2)
    torch.manual_seed(0)
    gan = ToyGan()
    before = weights(gan)
    trainer(tmp_path, max_steps=2, callbacks=[Skip()], gradient_clip_val=1e-3).fit(gan, PairsData())
    assert 0 < gan.seen_norm <= 1.001e-3  # SKIP comes after the trainer's clipping
    assert same(before, weights(gan))  # and a skipped step leaves the weights


def test_one_power_has_one_owner() -> None:
    class Other(Weigher):
        label = "other"

    with pytest.raises(ValueError, match=r"'other' and 'weigher' both claim the weighting of losses"):
        Composition([Weigher(), Other()])
    with pytest.raises(ValueError, match="both claim the name 'halve'"):
        Composition([Halve(), Halve()])


def test_hooks_and_declarations_go_together() -> None:
    class NoSlot(Named):
        def transform_batch(self, task, batch):
            return batch

    class NoHook(Named):
        claims = frozenset({Power.WEIGHING})

    for kind in (NoSlot, NoHook):
        with pytest.raises(ValueError, match="only one"):
            Composition([kind()])


def test_a_term_is_never_overwritten(tmp_path: Path) -> None:
    class Clash(Penalty):
        def extra_losses(self, task, batch, losses):
            return {"generator/cycle": losses["generator/cycle"]}

    with pytest.raises(ValueError, match=r"penalty.*generator/cycle.*rename"):
        fit(tmp_path, [Clash()])


def test_draws_depend_on_seed_name_and_clock() -> None:
    def draw(technique: Technique, clock: int) -> float:
        return torch.rand(1, generator=technique.generator(clock)).item()

    assert draw(Halve(seed=1), 5) == draw(Halve(seed=1), 5)
    assert len({draw(Halve(seed=1), 5), draw(Halve(seed=2), 5), draw(Halve(seed=1), 6), draw(Flip(seed=1), 5)}) == 4


@pytest.mark.parametrize("path", sorted((SOURCE / "techniques").rglob("[a-z]*.py")), ids=lambda path: path.stem)
def test_only_techniques_that_draw_take_a_seed(path: Path) -> None:
    text = path.read_text()
    assert ("seed: int" in text) == bool(re.search(r"self\.(generator\(|seed\b)", text)), path.stem
