"""The one training step: equal to the alternating reference, exact on resume, clear on mistakes."""

import itertools
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from etude.core.checkpoints import LastCheckpoint
from etude.core.task import frozen
from etude.core.technique import Power, Technique
from tests.toys import Pairs, PairsData, ToyGan, mlp, same, trainer, weights


def alternating_reference(gan: ToyGan, batches: list[dict[str, torch.Tensor]], clip: float) -> None:
    """Zhu et al. 2017's loop: fakes once, then one optimizer after the other."""
    players = {name: [p for m in modules for p in m.parameters()] for name, modules in gan.players.items()}
    one = torch.optim.Adam(players["generator"], lr=2e-4, betas=(0.5, 0.999))
    two = torch.optim.Adam(players["discriminator"], lr=1e-4, betas=(0.5, 0.999))
    for batch in batches:
        a, b = batch["a"], batch["b"]
        fake_b, fake_a = gan.ab(a), gan.ba(b)
        with frozen(gan.da, gan.db):
            adversarial = ((gan.db(fake_b) - 1) ** 2).mean() + ((gan.da(fake_a) - 1) ** 2).mean()
        one.zero_grad()
        (adversarial + 10 * ((gan.ba(fake_b) - a).abs().mean() + (gan.ab(fake_a) - b).abs().mean())).backward()
        nn.utils.clip_grad_norm_(players["generator"], clip)
        one.step()
        two.zero_grad()
        real = ((gan.db(b) - 1) ** 2).mean() + ((gan.da(a) - 1) ** 2).mean()
        fake = (gan.db(fake_b.detach()) ** 2).mean() + (gan.da(fake_a.detach()) ** 2).mean()
        (0.5 * (real + fake)).backward()
        nn.utils.clip_grad_norm_(players["discriminator"], clip)
        two.step()


def test_one_backward_equals_the_alternating_cyclegan(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gan = ToyGan(noise=0.0)
    reference = ToyGan(noise=0.0)
    reference.load_state_dict(gan.state_dict())
    data = Pairs()
    batches = [{k: torch.stack([data[i][k] for i in range(j, j + 4)]) for k in "ab"} for j in range(0, 64, 4)]
    run = trainer(tmp_path, max_steps=32, gradient_clip_val=0.5)
    run.fit(gan, PairsData(shuffle=False))
    alternating_reference(reference, batches * 2, clip=0.5)
    assert run.global_step == 32  # one step a batch
    assert same(weights(gan), weights(reference))


def test_clipping_is_per_player() -> None:
    gan = ToyGan()
    optimizer = gan.configure_optimizers()
    gan.da[0].weight.grad = torch.full_like(gan.da[0].weight, 100.0)
    gan.ab[0].weight.grad = torch.full_like(gan.ab[0].weight, 1e-4)
    gan.configure_gradient_clipping(optimizer, gradient_clip_val=1.0)
    assert gan.da[0].weight.grad.norm() == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(gan.ab[0].weight.grad, torch.full_like(gan.ab[0].weight, 1e-4))


def test_frozen_blocks_parameters_but_not_inputs() -> None:
    net, x = mlp(3, 1), torch.randn(2, 3, requires_grad=True)
    net[0].bias.requires_grad_(False)
    with frozen(net):
        net(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in net.parameters())
    assert net[2].bias.requires_grad and not net[0].bias.requires_grad  # each as it was


def test_a_resting_player_keeps_its_weights_and_optimizer_state(tmp_path: Path) -> None:
    class Resting(ToyGan):
        def losses(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            terms = super().losses(batch)
            keep = self.batches_trained % 2 == 0
            return {n: v for n, v in terms.items() if keep or not n.startswith("discriminator")}

    gan = Resting()
    run = trainer(tmp_path, max_steps=4)
    run.fit(gan, PairsData())
    state = run.optimizers[0].state
    assert state[gan.ab[0].weight]["step"] == 4
    assert state[gan.da[0].weight]["step"] == 2


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    class Words(ToyGan):
        def __init__(self) -> None:
            super().__init__()
            self.ab = nn.Sequential(nn.Embedding(5, 8), nn.LayerNorm(8), nn.Linear(8, 8))

    groups = Words().parameter_groups()
    decaying = {id(p) for g in groups if g.get("weight_decay") != 0.0 for p in g["params"]}
    words = Words()
    assert decaying.isdisjoint({id(p) for p in words.ab[0].parameters()})
    for group in groups:
        for parameter in group["params"]:
            assert (id(parameter) in decaying) == (parameter.ndim == 2 and parameter.shape != (5, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_weights": {"generator/cylce": 1.0}}, "cylce"),
        ({"player_lr": {"critic": 1e-3}}, r"critic.*discriminator.*generator"),
    ],
)
def test_wrong_names_are_told(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_steps=1).fit(ToyGan(**options), PairsData())


@pytest.mark.parametrize(("workers", "stop"), [(0, 5), (0, 16), (2, 11), (2, 23)])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, workers: int, stop: int) -> None:
    def fit(name: str, steps: int, resume: Path | None = None) -> ToyGan:
        torch.manual_seed(0 if resume is None else 99)
        gan = ToyGan(seed=3)
        saver = ModelCheckpoint(tmp_path / name, "last", every_n_train_steps=stop, save_top_k=1, enable_version_counter=False)
        run = trainer(tmp_path, max_steps=steps, callbacks=[saver])
        run.fit(gan, PairsData(workers), ckpt_path=resume)
        return gan

    whole = fit("whole", 36)
    fit("half", stop)
    resumed = fit("rest", 36, tmp_path / "half" / "last.ckpt")
    assert same(weights(whole), weights(resumed))


def test_draws_depend_on_seed_and_clock_alone(tmp_path: Path) -> None:
    runs = []
    for noise_before in (0, 7):
        torch.manual_seed(0)
        gan = ToyGan(seed=5)
        torch.randn(noise_before)
        trainer(tmp_path, max_steps=3).fit(gan, PairsData())
        runs.append(weights(gan))
    assert same(*runs)


def test_every_pair_of_terms_is_summed_with_its_weight() -> None:
    gan = ToyGan(loss_weights={"x": 2.0})
    terms = {"x": torch.tensor(3.0), "y": torch.tensor(5.0)}
    for order in itertools.permutations(terms):
        assert gan.weighted_sum({n: terms[n] for n in order}) == 11.0


class Factors(Technique):
    """Halves one term."""

    def scale_losses(self, task: Any, losses: Any) -> dict[str, float]:
        return {self.term: 0.5}

    def __init__(self, term: str = "generator/cycle") -> None:
        super().__init__()
        self.term = term


class OwnBackward(Technique):
    """The plain backward, done by a technique."""

    claims: ClassVar[frozenset[Power]] = frozenset({Power.BACKWARD})

    def backward(self, task: Any, terms: Any) -> None:
        torch.stack(list(terms.values())).sum().backward()


def trained(folder: Path, techniques: list[Technique], **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    gan = ToyGan(**options.pop("task", {}))
    trainer(folder, max_steps=4, callbacks=techniques, **options).fit(gan, PairsData())
    return weights(gan)


def test_factors_of_techniques_multiply_the_weights(tmp_path: Path) -> None:
    halved = trained(tmp_path, [Factors()])
    assert same(halved, trained(tmp_path, [], task={"loss_weights": {"generator/cycle": 5.0, "discriminator/all": 0.5}}))
    with pytest.raises(ValueError, match=r"'test_task' scales a loss 'cycel', but the terms are"):
        trained(tmp_path, [Factors("cycel")])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_technique_that_owns_the_backward_gets_scaled_terms(tmp_path: Path, accumulate: int) -> None:
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.1}
    plain, owned = trained(tmp_path, [], **options), trained(tmp_path, [OwnBackward()], **options)
    assert all(torch.allclose(plain[name], owned[name], atol=1e-7) for name in plain)


def test_factors_of_learning_rates_go_by_the_longest_beginning_of_a_name(tmp_path: Path) -> None:
    gan = ToyGan(optimizer=partial(torch.optim.SGD, lr=1.0), player_lr={})
    gan.lr_factors = {"ab": 0.1, "ab.2": 0.5}
    before = weights(gan)
    frozen_ones = [gan.ba[0].weight, gan.ba[0].bias]
    for parameter in frozen_ones:
        parameter.requires_grad_(False)
    run = trainer(tmp_path, max_steps=1)
    run.fit(gan, PairsData())
    rates = {name: g["lr"] for g in run.optimizers[0].param_groups for name, p in gan.named_parameters() if p in set(g["params"])}
    assert rates["ab.0.weight"] == 0.1 and rates["ab.2.bias"] == 0.5 and rates["da.0.weight"] == 1.0
    assert "ba.0.weight" not in rates and torch.equal(before["ba.0.weight"], gan.ba[0].weight)


def test_a_metric_that_nothing_logs_is_told(tmp_path: Path) -> None:
    gan = ToyGan()
    gan.check_metric("val/cycle", "x.monitor", "min")
    with pytest.raises(ValueError, match=r"x.monitor is 'val/nlll', which nothing logs; there are train/loss, val/cycle"):
        gan.check_metric("val/nlll", "x.monitor", "min")


class Lazy(ToyGan):
    """A term that only every fifth batch has."""

    optional_terms = frozenset({"generator/lazy"})

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = super().losses(batch)
        if self.batches_trained % 5 == 0:
            terms["generator/lazy"] = 0.1 * terms["generator/cycle"]
        return terms


@pytest.mark.parametrize("stops", [[3], [16], [14, 16]])  # in an epoch, at its end, and both
def test_a_term_that_some_batches_lack_is_logged_alike_after_resuming(tmp_path: Path, stops: list[int]) -> None:
    class Seen(pl.Callback):
        def __init__(self) -> None:
            self.values: dict[int, float] = {}

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            self.values[trainer.global_step] = float(pl_module.latest_terms.get("train/generator/lazy", 0.0))

    def run(name: str, stop_at: int | None = None, resume: Path | None = None) -> dict[int, float]:
        torch.manual_seed(0)
        seen, last = Seen(), LastCheckpoint(path=tmp_path / name / "last.ckpt", every_n_steps=1000, stop_at=stop_at)
        often: dict[str, Any] = {"val_check_interval": 6, "check_val_every_n_epoch": None}
        fit = trainer(tmp_path / name, max_steps=22, callbacks=[seen, last], **often)
        with suppress(SystemExit):
            fit.fit(Lazy(), PairsData(), ckpt_path=resume, weights_only=True)
        return seen.values

    whole = run("whole")
    assert [step for step, value in whole.items() if value == 0] == [17, 18, 19, 20] and len(set(whole.values())) == 6
    resume = None
    for stop in stops:
        run(f"part{stop}", stop, resume)
        resume = tmp_path / f"part{stop}" / "last.ckpt"
    rest = run("rest", resume=resume)
    assert rest == {step: value for step, value in whole.items() if step > stops[-1]}
