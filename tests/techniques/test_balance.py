"""Gradients by hand and by torchjd, a lone term's plain gradient, terms that come and go, exact resuming."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchjd.aggregation import IMTLG, CAGrad, PCGrad
from torchjd.autojac import backward, jac_to_grad

from etude.core.batch import Batch
from etude.core.checkpoints import LastCheckpoint
from etude.core.task import Task
from etude.core.technique import Composition, Power, Technique
from etude.techniques.loss.balance import Balance
from etude.techniques.weights.ema import Ema
from tests.tasks.test_style_transfer import EVERY
from tests.tasks.test_style_transfer import task as style_transfer
from tests.toys import MelsData, PairsData, ToyGan, mlp, same, trainer, weights

BY_VALUES = ["adaptive", "uncertainty", "dwa"]
BY_GRADIENTS = ["gradnorm", "pcgrad", "cagrad", "imtl"]


class Plane(Task):
    """Two parameters, two linear terms whose gradients are given."""

    def __init__(self, one: list[float], other: list[float], **options: Any) -> None:
        super().__init__(optimizer=partial(torch.optim.SGD, lr=1.0), **options)
        self.point = nn.Parameter(torch.zeros(2))
        self.unused = nn.Parameter(torch.zeros(2))
        self.directions = torch.tensor([one, other], dtype=torch.float32)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        a, b = self.directions @ self.point
        return {"a": a, "b": b}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        pass


class Coming(ToyGan):
    """A GAN whose generator has a term every third batch, and whose discriminator rests on every fourth."""

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = super().losses(batch)
        if self.batches_trained % 3 == 0:
            terms["generator/size"] = (self.ab(batch["a"]) ** 2).mean()
        if self.batches_trained % 4 == 3:
            del terms["discriminator/all"]
        return terms


class Ready(Technique):
    """Stands for a technique that adds a term."""

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"size": task.point.square().sum()}  # type: ignore[union-attr, operator]


def fit(folder: Path, task: Task, *techniques: pl.Callback, steps: int = 1, resume: Path | None = None, **options: Any) -> Task:
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=1000)
    run = trainer(folder, max_steps=steps, callbacks=[*techniques, last], **options)
    run.fit(task, PairsData(), ckpt_path=resume, weights_only=True)
    return task


def gan(made: type[ToyGan] = ToyGan, **options: Any) -> ToyGan:
    torch.manual_seed(0)
    return made(**options)


def moved(folder: Path, task: Plane, balance: Balance) -> list[float]:
    """What one step of descent with learning rate 1 adds to the gradient's opposite."""
    fit(folder, task, balance)
    assert torch.equal(task.unused, torch.zeros(2)) and task.unused.grad is None
    return [-x for x in task.point.tolist()]


def test_pcgrad_by_hand(tmp_path: Path) -> None:
    # (1, 0) loses what opposes (-1, 1) and becomes (1/2, 1/2); (-1, 1) becomes (0, 1)
    assert moved(tmp_path, Plane([1, 0], [-1, 1]), Balance(method="pcgrad")) == pytest.approx([0.5, 1.5])
    assert moved(tmp_path, Plane([1, 0], [1, 1]), Balance(method="pcgrad")) == pytest.approx([2, 1])  # agree: the sum


def test_imtl_by_hand(tmp_path: Path) -> None:
    # weights 3/4 and 1/4, times two terms: equal projections 1.5 on both
    assert moved(tmp_path, Plane([1, 0], [0, 3]), Balance(method="imtl")) == pytest.approx([1.5, 1.5])


def test_cagrad_by_hand(tmp_path: Path) -> None:
    assert moved(tmp_path, Plane([1, 0], [0, 3]), Balance(method="cagrad", radius=0.0)) == pytest.approx([1, 3])
    # of equal norm: the worst-off direction is the mean itself, which grows by the radius
    assert moved(tmp_path, Plane([1, 0], [0, 1]), Balance(method="cagrad", radius=0.4)) == pytest.approx([1.4, 1.4], abs=1e-4)


def test_weights_of_the_task_hold_before_the_surgery(tmp_path: Path) -> None:
    task = Plane([1, 0], [-1, 1], loss_weights={"a": 2.0})
    # (2, 0) becomes (1, 1), (-1, 1) becomes (0, 1)
    assert moved(tmp_path, task, Balance(method="pcgrad")) == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize(
    ("method", "aggregator", "times"), [("pcgrad", PCGrad(), 1), ("cagrad", CAGrad(c=0.4), 2), ("imtl", IMTLG(), 2)]
)
def test_gradients_are_torchjds(method: Any, aggregator: Any, times: int) -> None:
    torch.manual_seed(1)
    network, inputs = mlp(8, 2), torch.randn(16, 8)
    terms = lambda: (network(inputs) ** 2 * torch.tensor([5.0, 1.0]) + 3 * network(inputs)).mean(0)  # noqa: E731
    one, other = terms()
    backward([one, other], parallel_chunk_size=1)
    jac_to_grad(list(network.parameters()), aggregator)
    expected = [times * p.grad for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    one, other = terms()
    Balance(method=method).backward(gan(), {"a": one, "b": other})
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", BY_GRADIENTS)
def test_common_scale_and_accumulation_are_of_no_account(method: Any) -> None:
    torch.manual_seed(1)
    network, inputs = mlp(8, 2), torch.randn(16, 8)

    def gradients(scale: float, times: int) -> list[Tensor]:
        network.zero_grad()
        for _ in range(times):
            balance = Balance(method=method)
            one, other = (network(inputs) ** 2 * torch.tensor([5.0, 1.0]) - network(inputs)).mean(0)
            balance._values = {"a": one.detach(), "b": other.detach()}
            balance._weights = {"a": 1.0, "b": 1.0}
            balance.backward(gan(), {"a": scale * one, "b": scale * other})
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    for one, other in zip(gradients(1.0, 1), gradients(2.0**-7, 128), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_what_is_no_parameter_gets_its_gradient_and_has_no_say() -> None:
    point, other = nn.Parameter(torch.zeros(2)), torch.zeros(2, requires_grad=True)  # a projection of another technique
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    Balance(method="pcgrad").backward(gan(), {"a": one @ point + 9 * other[0], "b": two @ point + 9 * other[0]})
    torch.testing.assert_close(point.grad, torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(other.grad, torch.tensor([9 * (1.5 + 2.0), 0.0]))  # weights 3/2 and 2


@pytest.mark.parametrize("method", ["adaptive", "pcgrad", "imtl"])
def test_a_lazy_term_keeps_its_own_weight(tmp_path: Path, method: Any) -> None:
    class Penalised(Plane):
        optional_terms = frozenset({"penalty"})

        def losses(self, batch: Batch) -> dict[str, Tensor]:
            return {**super().losses(batch), "penalty": 100 * self.point.sum()}

    alone = moved(tmp_path, Plane([1, 0], [0, 3]), Balance(method=method))
    with_it = moved(tmp_path, Penalised([1, 0], [0, 3], loss_weights={"penalty": 0.5}), Balance(method=method))
    assert with_it == pytest.approx([x + 50 for x in alone])


@pytest.mark.parametrize("method", BY_GRADIENTS)
def test_a_term_without_gradient_takes_no_part(method: Any) -> None:
    point = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    balance = Balance(method=method)
    balance._values = {"a": torch.tensor(5.0), "b": torch.tensor(0.0)}
    balance._weights = {"a": 1.0, "b": 1.0}
    balance.backward(gan(), {"a": (point * torch.tensor([3.0, 4.0])).sum(), "b": 0 * point.sum()})
    assert point.grad is not None and torch.isfinite(point.grad).all()
    torch.testing.assert_close(point.grad / point.grad.norm(), torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("method", ["fixed", *BY_VALUES, *BY_GRADIENTS])
def test_a_lone_term_gets_exactly_its_plain_gradient(tmp_path: Path, method: Any) -> None:
    names = ("da", "db")  # the discriminator's only term; the generator's two may differ
    bare, balanced = fit(tmp_path, gan()), fit(tmp_path, gan(), Balance(method=method))
    of_judge = [{k: v for k, v in weights(task).items() if k.startswith(names)} for task in (bare, balanced)]
    assert same(*of_judge)


def test_fixed_is_the_bare_run(tmp_path: Path) -> None:
    assert same(weights(fit(tmp_path, gan(), steps=6)), weights(fit(tmp_path, gan(), Balance(method="fixed"), steps=6)))


@pytest.mark.parametrize("method", [*BY_VALUES, *BY_GRADIENTS])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}], ids=["plain", "accumulated"])
def test_it_acts_on_terms_that_come_and_go_and_resumes_exactly(tmp_path: Path, method: Any, options: Any) -> None:
    def run(folder: str, balance: Balance, **more: Any) -> Task:
        return fit(tmp_path / folder, gan(Coming), balance, **options, **more)

    def made() -> Balance:
        return Balance(method=method, period=3)

    bare = fit(tmp_path / "bare", gan(Coming), steps=9, **options)
    whole, one = run("whole", made(), steps=9), made()
    run("half", one, steps=4)
    rest = run("rest", made(), steps=9, resume=tmp_path / "half" / "last.ckpt")
    assert same(weights(whole), weights(rest)) and not same(weights(whole), weights(bare))
    assert all(torch.isfinite(value).all() for value in weights(whole).values())


@pytest.mark.parametrize("method", [*BY_VALUES, *BY_GRADIENTS])
def test_style_transfer_with_all_its_terms(tmp_path: Path, method: Any) -> None:
    torch.manual_seed(0)
    task = style_transfer(loss_weights=EVERY, seed=1, r1_every=2, identity_every=2)
    start = weights(task)
    run = trainer(tmp_path, max_steps=3, callbacks=[Balance(method=method, period=1)])
    run.fit(task, MelsData())
    after = weights(task)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert {name.partition(".")[0] for name in after if not torch.equal(after[name], start[name])} >= {"generators", "judge"}
    factors = {name.removeprefix("train/balance/") for name in run.callback_metrics if name.startswith("train/balance/")}
    assert factors == {name for name in EVERY if name.startswith("generator/")} - task.optional_terms


def test_factors_are_logged_and_pcgrad_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    task = gan()
    run = trainer(tmp_path, max_steps=2, callbacks=[Balance(method="pcgrad")])
    run.fit(task, PairsData())
    assert {"train/balance/generator/adversarial", "train/balance/generator/cycle"} <= run.callback_metrics.keys()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, other = task.ab(torch.ones(2, 8))[:, :2].mean(0)
    Balance(method="pcgrad").backward(task, {"generator/a": one, "generator/b": -other})
    assert torch.equal(torch.rand(1), expected)


def test_a_bad_batch_leaves_the_state_alone(tmp_path: Path) -> None:
    balance, task = Balance(), gan()
    fit(tmp_path, task, balance, steps=3)
    before = {name: value.clone() for name, value in balance._state.items()}
    terms = dict.fromkeys(before, torch.tensor(torch.nan))
    balance.weigh(task, terms)
    assert all(torch.equal(before[name], value) for name, value in balance._state.items())


def test_another_method_goes_on_afresh(caplog: pytest.LogCaptureFixture) -> None:
    one, other = Balance(method="adaptive"), Balance(method="dwa")
    one.batches, one._state = 5, {"a": torch.zeros(2)}
    other.load_state_dict(one.state_dict())
    assert other.batches == 5 and not other._state and "without the state of method=adaptive" in caplog.text


class OneTerm(Plane):
    terms = ("a",)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"a": super().losses(batch)["a"]}


def test_a_task_with_one_term_is_refused_unless_another_technique_adds_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"technique balance needs several terms, OneTerm has only one \(a\)"):
        fit(tmp_path, OneTerm([1, 2], [3, 4]), Balance(), Ema())
    fit(tmp_path, OneTerm([1, 2], [3, 4]), Balance(), Ready())
    assert "only one term" not in caplog.text
    with caplog.at_level(logging.WARNING):

        class Idle(Ready):
            def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
                return {}

        fit(tmp_path, OneTerm([1, 2], [3, 4]), Balance(), Idle())
    assert "only one term so far (a)" in caplog.text


def test_methods_on_gradients_claim_the_backward_pass() -> None:
    assert Balance().claims == {Power.WEIGHING}
    assert all(Balance(method=method).claims == {Power.WEIGHING, Power.BACKWARD} for method in BY_GRADIENTS)  # type: ignore[arg-type]
    for method in ("fixed", *BY_VALUES, *BY_GRADIENTS):
        Composition([Balance(method=method)])  # type: ignore[arg-type]


def test_several_devices_are_refused_by_methods_on_gradients(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1)
    run.strategy.__class__.__name__, name = "FSDPStrategy", run.strategy.__class__.__name__
    try:
        with pytest.raises(ValueError, match=r"technique balance with method=imtl .* ToyGan; .* several devices"):
            Balance(method="imtl").setup(run, gan(), "fit")
        Balance().setup(run, gan(), "fit")
    finally:
        run.strategy.__class__.__name__ = name


@pytest.mark.parametrize(
    ("option", "value"),
    [("decay", 1.0), ("rate", 0.0), ("period", 0), ("temperature", 0.0), ("alpha", -1.0), ("radius", 1.0), ("limit", 1.0)],
)
def test_options_out_of_range_are_told(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"balance\.{option} is {value}, must be"):
        Balance(**{option: value})  # type: ignore[arg-type]


def test_an_unknown_method_is_told() -> None:
    with pytest.raises(ValueError, match=r"balance\.method is 'mean', must be one of fixed, adaptive"):
        Balance(method="mean")  # type: ignore[arg-type]


class Half(Technique):
    """Takes half of a term back."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base, self.term = base, f"{base}_half"

    @property
    def corrections(self) -> dict[str, str]:
        return {self.term: self.base}

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {self.term: -0.5 * losses[self.base]}


@pytest.mark.parametrize("method", [*BY_VALUES, *BY_GRADIENTS])
def test_a_correction_goes_with_its_term(tmp_path: Path, method: Any) -> None:
    found = []
    for weight, techniques in ((10.0, [Half("generator/cycle")]), (5.0, [])):
        torch.manual_seed(0)
        task = ToyGan(noise=0.0, loss_weights={"generator/cycle": weight}, player_lr={})
        balance = Balance(method=method)
        trainer(tmp_path, max_steps=6, callbacks=[balance, *techniques]).fit(task, PairsData())
        assert "generator/cycle_half" not in balance._factors
        found.append(weights(task))
    if method in ("dwa", "pcgrad", "imtl", "cagrad"):  # blind to a term's size, or to its weight
        assert all(torch.allclose(one, found[1][name], atol=1e-5) for name, one in found[0].items())
    bare = ToyGan(noise=0.0)
    assert all(value.isfinite().all() for value in found[0].values()) and found[0].keys() == weights(bare).keys()


def test_a_techniques_weight_is_its_terms_share_even_while_the_term_is_away(tmp_path: Path) -> None:
    class Now(Technique):
        """A term a thousand times as large as the rest, on every third batch, with a small weight."""

        def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"generator/now": 1000 * losses["generator/cycle"]} if task.batches_trained % 3 == 0 else {}

        def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
            return {"generator/now": 0.05} if "generator/now" in losses else {}

    task, balance = gan(), Balance(method="adaptive", limit=1e6)
    fit(tmp_path, task, balance, Now(), steps=6)  # the last batch is without it
    assert balance._factors.keys() == {"generator/adversarial", "generator/cycle"}
    share = {"generator/adversarial": 1.0, "generator/cycle": 10.0, "generator/now": 0.05}
    mean = {name: float(total / count) for name, (total, count) in balance._state.items()}
    level = sum(share[name] * mean[name] for name in share) / sum(share.values())
    for name, factor in balance._factors.items():
        assert float(factor) == pytest.approx(level / mean[name], rel=1e-5)


class Third(Half):
    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        return {"a": 0.3}


def test_a_correction_has_the_weight_of_its_term_with_any_factor(tmp_path: Path) -> None:
    task = Plane([1, 0], [0, 1], loss_weights={"a": 2.0})
    fit(tmp_path, task, Third("a"))
    assert [-x for x in task.point.tolist()] == pytest.approx([2.0 * 0.3 * 0.5, 1.0])


def test_a_lone_term_with_its_correction_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = OneTerm([1, 0], [0, 1])
    fit(tmp_path, task, Half("a"), Balance())
    assert "only one term so far (a)" in caplog.text and task.point[0].item() == pytest.approx(-0.5)


def test_a_state_of_before_weights_were_kept_begins_anew(tmp_path: Path) -> None:
    balance = Balance()
    fit(tmp_path, gan(), balance, steps=3)
    state = balance.state_dict()
    del state["weights"]
    resumed = Balance()
    resumed.load_state_dict(state)
    fit(tmp_path / "on", gan(), resumed, steps=1)
    assert resumed.batches == 4 and resumed._factors.keys() == balance._factors.keys()
