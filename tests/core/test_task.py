"""The one training step: equal to the alternating reference, exact on resume, clear on mistakes."""

import itertools
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from etude.core.task import frozen
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
