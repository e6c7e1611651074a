"""Every optimizer on a tiny language model and a toy GAN: trains, spares norms and embeddings, resumes bit for bit; first steps
by hand."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from etude.core.checkpoints import LastCheckpoint
from etude.core.task import Task
from etude.models.symbolic.transformer import Transformer
from etude.optim import optimizers, schedules
from etude.optim.muon import Muon, iteration_dtype
from etude.tasks.language_model import LanguageModel
from etude.techniques.weights.schedule_free import ScheduleFree
from tests.songs import write_songs
from tests.techniques.test_swa import Stop
from tests.test_composition import music
from tests.toys import PairsData, ToyGan, same, trainer, weights

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SERVED = [(name, kind) for name in NAMES for kind in ("language_model", "gan") if (name, kind) != ("sophia", "gan")]


def node(name: str) -> Any:
    found = OmegaConf.load(CONF / f"{name}.yaml")
    return found.get("optimizer", found)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("optimizers") / "songs")


def build(name: str, kind: str, songs: Path, **options: Any) -> tuple[Task, Any, list[pl.Callback]]:
    torch.manual_seed(0)
    options = {"optimizer": instantiate(node(name), _convert_="all"), **options}
    techniques: list[pl.Callback] = [ScheduleFree()] if name == "schedule_free" else []
    if kind == "gan":
        return ToyGan(player_lr={}, **options), PairsData(), techniques
    data = music(songs)
    model = partial(Transformer, dim=16, num_layers=1, num_heads=2, tie_embeddings=False)
    return LanguageModel(model=model, tokenizer=data.tokenizer, seed=1, **options), data, techniques


class Losses(pl.Callback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, *_: Any) -> None:
        self.seen.append(float(outputs["loss"]))


def test_every_choice_is_here() -> None:
    wanted = {"adamw", "lion", "sophia", "adafactor", "muon", "soap", "schedule_free", "lookahead_adamw", "adam"}
    assert wanted <= set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if node(name)["_target_"].startswith("etude.")])
def test_files_have_the_python_defaults(name: str) -> None:
    mine = {key: value for key, value in OmegaConf.to_container(node(name)).items() if not key.startswith("_")}
    parameters = inspect.signature(get_object(node(name)["_target_"])).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    assert mine == {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_the_loss_falls(tmp_path: Path, songs: Path, name: str, kind: str) -> None:
    quick = instantiate(node(name), lr=4 * node(name)["lr"], _convert_="all")  # tiny networks want higher rates
    task, data, techniques = build(name, kind, songs, scheduler=schedules.cosine, optimizer=quick)
    losses = Losses()
    run = trainer(tmp_path, max_steps=40, callbacks=[*techniques, losses], gradient_clip_val=1.0)
    run.fit(task, data)
    assert sum(losses.seen[-5:]) < 0.97 * sum(losses.seen[:5])
    assert all(bool(torch.isfinite(value).all()) for value in weights(task).values())
    assert all(group["lr"] < 1e-2 * group["initial_lr"] for group in run.optimizers[0].param_groups)


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, songs: Path, name: str, kind: str) -> None:
    def fit(folder: Path, *more: pl.Callback, resume: Path | None = None) -> Any:
        task, data, techniques = build(name, kind, songs, scheduler=schedules.linear)
        last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=1000)
        options = {"max_steps": 13, "val_check_interval": 4, "gradient_clip_val": 1.0}
        run = trainer(folder, callbacks=[*techniques, last, *more], **options)
        run.fit(task, data, ckpt_path=resume, weights_only=True)
        return weights(task), torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]

    whole, saved = fit(tmp_path / "whole")
    fit(tmp_path / "half", Stop(6))
    rest, again = fit(tmp_path / "rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole, rest) and same(saved, again)


@pytest.mark.parametrize(("name", "kind"), SERVED)
def test_norms_biases_and_embeddings_do_not_decay(songs: Path, name: str, kind: str) -> None:
    task, *_ = build(name, kind, songs)
    optimizer, before = task.build_optimizer(), weights(task)
    embeddings = {id(p) for m in task.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    if isinstance(optimizer, optimizers.SophiaG):
        optimizer._hessian = [torch.zeros_like(p) for group in optimizer.param_groups for p in group["params"]]
    for _ in range(3):
        for parameter in task.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for key, parameter in task.named_parameters():
        spared = parameter.ndim < 2 or id(parameter) in embeddings or node(name).get("weight_decay") == 0
        assert torch.equal(parameter, before[key]) if spared else parameter.norm() < before[key].norm(), key


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sophia"])
def test_a_player_has_its_own_rate(songs: Path, name: str) -> None:
    task, *_ = build(name, "gan", songs)
    task.player_lr = {"generator": 0.5 * node(name)["lr"]}
    groups = task.build_optimizer().param_groups
    rates = [[group["lr"] for group in groups if group["player"] == player] for player in ("generator", "discriminator")]
    assert rates[0] == pytest.approx([0.5 * rate for rate in rates[1]]) and len(rates[0]) == 2


def stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, *gradients: Tensor) -> Tensor:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def test_lion_by_hand() -> None:
    w = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    lion = optimizers.lion([{"params": [w]}], lr=0.1, betas=(0.9, 0.5), weight_decay=0.5)
    # m0 = 0: u = sign(0.1 g) = (1, -1); w = 0.95 w - 0.1 u; m1 = 0.5 g = (1, -0.5)
    # then g = (-4, 9): 0.9 m1 + 0.1 g = (0.5, 0.45): u = (1, 1)
    found = stepped(lion, w, torch.tensor([[2.0, -1.0]]), torch.tensor([[-4.0, 9.0]]))
    torch.testing.assert_close(found, torch.tensor([[(0.95 - 0.1) * 0.95 - 0.1, (-1.9 + 0.1) * 0.95 - 0.1]]))


def test_muon_by_hand() -> None:
    torch.manual_seed(0)
    w, bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))
    start, bias_start, gradient = w.detach().clone(), bias.detach().clone(), torch.randn(6, 4)
    muon = optimizers.muon(
        [{"params": [w], "player": "a"}, {"params": [bias], "weight_decay": 0.0}], lr=0.1, weight_decay=0.5, adamw_lr=0.01
    )
    bias.grad = torch.full((6,), -3.0)
    found = stepped(muon, w, gradient)
    x = (gradient.T / gradient.norm()).double()  # its scale is lost: the momentum's factors are of no account in step 1
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    expected = start * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 6**0.5 * x.T.float()
    exact = iteration_dtype(w.device) == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6 if exact else 2e-3, rtol=0)
    torch.testing.assert_close(bias.detach(), bias_start + 0.01)  # Adam's first step is the rate


def test_muon_orthogonalises_matrices_and_their_transposes_together_as_each_alone() -> None:
    torch.manual_seed(0)
    updates = [torch.randn(6, 4), torch.randn(4, 6), torch.randn(6, 2, 2)]
    group = {"ns_steps": 5, "ns_coeffs": (3.4445, -4.7750, 2.0315)}
    alone = [Muon._orthogonalize(group, [update])[0] for update in updates]
    for one, other in zip(alone, Muon._orthogonalize(group, updates), strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=0)
        values = torch.linalg.svdvals(one.float())
        assert values.min() > 0.5 and values.max() < 1.3  # where five iterations leave them (Jordan et al. 2024)


def test_muon_iterates_in_what_the_cpu_computes_fast() -> None:
    able = torch.cpu.get_capabilities()
    fast = able.get("avx512_bf16") or able.get("amx_bf16")
    assert iteration_dtype(torch.device("cpu")) == (torch.bfloat16 if fast else torch.float32)
    assert iteration_dtype(torch.device("cuda")) == torch.bfloat16


def test_muon_takes_matrices_that_decay_and_nothing_else(songs: Path) -> None:
    task, *_ = build("muon", "language_model", songs)
    groups = task.build_optimizer().param_groups
    by_muon = {id(p) for group in groups if group["use_muon"] for p in group["params"]}
    embeddings = {id(p) for m in task.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    assert by_muon == {id(p) for p in task.parameters() if p.ndim >= 2} - embeddings and embeddings


def test_schedule_free_by_hand() -> None:
    """Against algorithm 1, with x and z kept by themselves."""
    w = nn.Parameter(torch.tensor([1.0, -2.0]))
    lr, b1, b2, decay = 0.1, 0.9, 0.99, 0.3
    optimizer = optimizers.ScheduleFree([{"params": [w]}], lr=lr, betas=(b1, b2), weight_decay=decay)
    x = z = torch.tensor([1.0, -2.0])
    v = torch.zeros(2)
    for t, gradient in enumerate(torch.tensor([[0.5, -1.0], [-2.0, 0.3], [1.0, 1.0]]), start=1):
        y = (1 - b1) * z + b1 * x
        torch.testing.assert_close(w.detach(), y)
        v = b2 * v + (1 - b2) * gradient**2
        z = z - lr * (gradient / ((v / (1 - b2**t)).sqrt() + 1e-8) + decay * y)
        x = (1 - 1 / t) * x + z / t
        stepped(optimizer, w, gradient)
        torch.testing.assert_close(optimizer.evaluation_weights()[w], x)


def test_lookahead_by_hand() -> None:
    w, plain = nn.Parameter(torch.tensor([[1.0]])), nn.Parameter(torch.tensor([[1.0]]))
    ahead = optimizers.lookahead_adamw([{"params": [w]}], lr=0.1, weight_decay=0.0, k=2, alpha=0.25, fused=False)
    adamw = torch.optim.AdamW([plain], lr=0.1, betas=(0.9, 0.98), weight_decay=0.0)
    gradients = [torch.tensor([[2.0]]), torch.tensor([[1.0]])]
    fast = stepped(adamw, plain, *gradients)
    torch.testing.assert_close(stepped(ahead, w, *gradients), 1.0 + 0.25 * (fast - 1.0))


def test_sophia_by_hand() -> None:
    w = nn.Parameter(torch.tensor([[1.0, -2.0, 3.0]]))
    sophia = optimizers.SophiaG([{"params": [w]}], lr=0.1, betas=(0.9, 0.5), weight_decay=0.5, gamma=0.2)
    sophia._hessian = [0.2 * torch.tensor([[10.0, 0.001, 0.0]])]  # gamma times the estimate
    found = stepped(sophia, w, torch.tensor([[2.0, 1.0, 0.0]]))
    # m = 0.1 g, gamma h = 0.5 * hessian: 0.2 / 1 is within the clip, 0.1 / 0.0001 is not, 0 is 0
    torch.testing.assert_close(found, torch.tensor([[0.95 - 0.1 * 0.2, -1.9 - 0.1, 2.85]]))


def test_sophias_estimate_is_the_gauss_newton_diagonal(songs: Path, tmp_path: Path) -> None:
    """Of one softmax layer, E[B ghat^2] over drawn labels is the diagonal of the Gauss-Newton matrix of the mean loss."""
    torch.manual_seed(0)
    inputs, counted = torch.randn(1, 6, 3), torch.tensor([[True] * 5 + [False]])

    class Linear(Task):
        def __init__(self) -> None:
            super().__init__(optimizer=optimizers.SophiaG)
            self.layer = nn.Linear(3, 4, bias=False)

        def logits(self, batch: Any) -> Tensor:
            return self.layer(inputs)

    task = Linear()
    task.trainer = trainer(tmp_path, max_steps=1)
    task.trainer.strategy.connect(task)
    sophia: Any = task.build_optimizer()
    mean = torch.zeros(4, 3)
    for draw in range(2000):
        task.batches_trained, task.trace, sophia._hessian = draw, {"logits": task.logits({})}, None
        sophia.observe(task, {"targets": torch.where(counted, 0, -100)})
        mean += sophia._hessian[0] / sophia.gamma / 2000
    p = task.logits({}).softmax(-1)[0, :5].detach()
    exact = torch.einsum("tc,tf->cf", p * (1 - p), inputs[0, :5] ** 2) / 5
    torch.testing.assert_close(mean, exact, rtol=0.15, atol=0.01)


def test_sophia_estimates_every_few_steps_and_draws_from_its_own_generator(tmp_path: Path, songs: Path) -> None:
    sophia = partial(optimizers.SophiaG, update_period=3)
    task, data, _ = build("sophia", "language_model", songs, optimizer=sophia)
    seen: list[bool] = []

    class Watch(pl.Callback):
        def on_before_backward(self, trainer: Any, task: Any, loss: Any) -> None:
            seen.append(trainer.optimizers[0]._hessian is not None)

    run = trainer(tmp_path, max_steps=5, callbacks=[Watch()])
    run.fit(task, data)
    assert seen == [True, False, False, True, False]
    assert all("hessian" not in state for state in run.optimizers[0].state.values())


def test_sophia_refuses_a_task_without_logits(tmp_path: Path, songs: Path) -> None:
    task, data, _ = build("sophia", "gan", songs)
    with pytest.raises(ValueError, match="optimizer=sophia draws labels from a model's logits, but ToyGan has none"):
        trainer(tmp_path, max_steps=1).fit(task, data)


def test_schedule_free_needs_its_technique(tmp_path: Path, songs: Path) -> None:
    task, data, _ = build("schedule_free", "gan", songs)
    with pytest.raises(ValueError, match=r"optimizer=schedule_free needs its technique, .*; add schedule_free to technique="):
        trainer(tmp_path, max_steps=1).fit(task, data)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (partial(optimizers.lion, betas=(1.0, 0.9)), r"optimizer lion: betas are \[1\.0, 0\.9\]"),
        (partial(optimizers.SophiaG, gamma=0.0), r"optimizer\.gamma is 0\.0, must be in \(0, 1\]"),
        (partial(optimizers.SophiaG, update_period=0), r"optimizer\.update_period is 0, must be at least 1"),
    ],
)
def test_values_out_of_range_are_told(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made([nn.Parameter(torch.zeros(1))])
