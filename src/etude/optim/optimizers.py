"""Optimizers beyond PyTorch's, called with a task's parameter groups; thin adapters of pytorch_optimizer.

The groups come from `Task.parameter_groups`: those of norms, biases and embeddings bring `weight_decay` 0, those of a player
with a learning rate of its own bring `lr`. An optimizer that must know its task has `attach(task)`, called once when it is
built; one that has `observe(task, batch)` sees each training batch while the task's `trace` still holds its graph.

The learning rates suit models of 1 to 10 million parameters in some hundred steps. They were found by doubling on chorales (grid
model of a million parameters, 150 steps) and stop short of the best there, since larger models and longer runs want less; Muon's
on chorales and on five genres in REMI tokens (400 steps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pytorch_optimizer.optimizer.lion import Lion
from pytorch_optimizer.optimizer.lookahead import Lookahead
from pytorch_optimizer.optimizer.muon import Muon
from pytorch_optimizer.optimizer.schedulefree import ScheduleFreeAdamW
from pytorch_optimizer.optimizer.soap import SOAP
from pytorch_optimizer.optimizer.sophia import SophiaH
from torch import Tensor
from torch.optim import Optimizer

from etude.core.protocols import PredictsTokens

if TYPE_CHECKING:
    from etude.core.task import Task

Groups = Iterable[dict[str, Any]]


def lion(params: Groups, *, lr: float = 0.0006, betas: Sequence[float] = (0.95, 0.98), weight_decay: float = 0.25) -> Optimizer:
    """Steps of equal size in the sign of an interpolated momentum; half of AdamW's memory.

    u = sign(b1 m + (1 - b1) g); w <- w - lr (u + weight_decay w); m <- b2 m + (1 - b2) g.

    When to use: memory counts, or batches are large. Rates are 3 to 10 times below AdamW's, decays as much above.

    Source: Chen et al. 2023, algorithm 2; these betas are its section 5's for language models.
    """
    return Lion(_listed(params), lr=lr, betas=_pair("lion", betas), weight_decay=weight_decay)


def soap(
    params: Groups, *, lr: float = 0.004, betas: Sequence[float] = (0.95, 0.95), weight_decay: float = 0.1,
    precondition_frequency: int = 10, max_precondition_dim: int = 2048,
) -> Optimizer:  # fmt: skip
    """Adam in the eigenbasis of Shampoo's preconditioner: fewer steps, each dearer. The first step only prepares.

    When to use: steps are few and batches large. Two matrices of the size of each dimension travel with each weight.

    Source: Vyas et al. 2024, algorithm 3.

    Args:
        precondition_frequency: steps between two updates of the basis, at least 1.
        max_precondition_dim: a larger dimension, such as a vocabulary's, keeps its own basis.
    """
    pair = _pair("soap", betas)
    return SOAP(
        _listed(params), lr=lr, betas=pair, weight_decay=weight_decay, precondition_frequency=precondition_frequency,
        max_precondition_dim=max_precondition_dim,
    )  # fmt: skip


def muon(
    params: Groups, *, lr: float = 0.006, momentum: float = 0.9, ns_steps: int = 5, weight_decay: float = 0.1,
    adamw_lr: float = 0.004, adamw_betas: Sequence[float] = (0.9, 0.98),
) -> Optimizer:  # fmt: skip
    """Orthogonalised momentum for matrices; AdamW with a rate of its own for norms, biases and embeddings.

    For the matrices of the decaying groups (a kernel of a convolution is one of [out, the rest]), with M the momentum:
    w <- (1 - lr weight_decay) w - lr * 0.2 sqrt(max(rows, columns)) * NewtonSchulz(g + momentum (M - g)), whose elements
    are about as large as AdamW's, so that rates compare. A player's own rate is that of its matrices; its other weights
    get the same share of it as adamw_lr is of lr.

    Matrices that trainer=fsdp splits are put together before NewtonSchulz. That runs in bfloat16, which turns a difference in a
    gradient's last bits, such as between fsdp and ddp, into one of up to a tenth of a step in a weight.

    When to use: networks that are mostly matrices, which learn in fewer steps; costs little on wide batches.

    Source: Jordan et al. 2024 (Muon); scaling of Liu et al. 2025 (Moonlight), equation 4.
    """
    groups = []
    for given in params:
        group = dict(given)
        group["use_muon"] = "weight_decay" not in group and all(p.ndim >= 2 for p in group["params"])
        if not group["use_muon"] and "lr" in group:
            group["lr"] *= adamw_lr / lr
        groups.append(group)
    return Muon(
        groups, lr=lr, momentum=momentum, ns_steps=ns_steps, weight_decay=weight_decay, use_adjusted_lr=True,
        adamw_lr=adamw_lr, adamw_betas=_pair("muon", adamw_betas), adamw_wd=weight_decay,
    )  # fmt: skip


def lookahead_adamw(
    params: Groups, *, lr: float = 0.003, betas: Sequence[float] = (0.9, 0.98), weight_decay: float = 0.1, k: int = 5,
    alpha: float = 0.5, fused: bool = True,
) -> Optimizer:  # fmt: skip
    """AdamW that every k steps goes back to the point `alpha` of the way from where it was k steps ago.

    slow <- slow + alpha (fast - slow); fast <- slow.

    When to use: a high rate makes training jumpy; the last weights are then nearly an average. Costs a copy of the weights.

    Source: Zhang et al. 2019, algorithm 1, over PyTorch's AdamW.
    """
    inner = torch.optim.AdamW(list(params), lr=lr, betas=_pair("lookahead_adamw", betas), weight_decay=weight_decay, fused=fused)
    return Lookahead(inner, k=k, alpha=alpha)


class ScheduleFree(ScheduleFreeAdamW):
    """AdamW without a schedule: gradients are taken between the fast weights z and their average x, which is the model.

    y = (1 - b1) z + b1 x is trained, z <- z - lr (g / (sqrt(v) + eps) + weight_decay y), x <- (1 - c) x + c z with
    c = lr_max^2 / sum of lr_max^2. The task's weights are y; technique=[schedule_free] evaluates and saves x.

    When to use: the length of the run is open. It wants a warm-up (scheduler=constant) and rates above AdamW's.

    Source: Defazio et al. 2024, algorithm 1.

    Args:
        betas: b1 of the interpolation and b2 of the second moment.
    """

    def __init__(
        self, params: Groups, *, lr: float = 0.006, betas: Sequence[float] = (0.9, 0.98), weight_decay: float = 0.1
    ) -> None:
        super().__init__(_listed(params), lr=lr, betas=_pair("schedule_free", betas), weight_decay=weight_decay)

    def attach(self, task: Task) -> None:
        """Raises: ValueError where no technique evaluates with x."""
        if all(technique.name != "schedule_free" for technique in task.composition.techniques):
            raise ValueError(
                "optimizer=schedule_free trains other weights than those to evaluate; add schedule_free to technique=[...]"
            )

    @torch.no_grad()
    def evaluation_weights(self) -> dict[Tensor, Tensor]:
        """Returns a new x for each parameter that has been trained: x = y + (1 - 1 / b1) (z - y)."""
        return {
            p: p.lerp(self.state[p]["z"], 1 - 1 / group["betas"][0])
            for group in self.param_groups
            for p in group["params"]
            if "z" in self.state[p]
        }


class SophiaG(SophiaH):
    """Momentum over a clipped estimate of the curvature's diagonal, from labels that the model draws itself.

    m <- b1 m + (1 - b1) g; every `update_period` steps h <- b2 h + (1 - b2) B ghat^2, where ghat is the gradient of the mean
    cross-entropy of B labels drawn from the model's own logits (Gauss-Newton-Bartlett); w <- w - lr weight_decay w
    - lr clip(m / max(gamma h, eps), 1). The labels' generator is keyed by (task's seed, rank, batches trained).

    When to use: language models; a task without logits is refused. Costs a further backward pass every update_period steps.

    Source: Liu et al. 2023, algorithms 2 and 3. Deviation: ghat is of the training batch's own forward pass.

    Args:
        gamma: larger clips fewer elements, in (0, 1]; suits where 10 to 50 % of them are not clipped.
        update_period: steps between two estimates, at least 1.
    """

    def __init__(
        self, params: Groups, *, lr: float = 0.0015, betas: Sequence[float] = (0.96, 0.99), weight_decay: float = 0.1,
        gamma: float = 0.05, update_period: int = 10,
    ) -> None:  # fmt: skip
        if not 0 < gamma <= 1:
            raise ValueError(f"optimizer.gamma is {gamma}, must be in (0, 1]; 0.05 is the paper's")
        if update_period < 1:
            raise ValueError(f"optimizer.update_period is {update_period}, must be at least 1 step; 10 is the paper's")
        # its own estimate, of Hutchinson, comes in step 1 and then never, and there ours is given
        super().__init__(
            _listed(params), lr=lr, betas=_pair("sophia", betas), weight_decay=weight_decay, p=1.0, update_period=2**62
        )
        self.gamma, self.every = gamma, update_period
        self._hessian: list[Tensor] | None = None

    def attach(self, task: Task) -> None:
        """Raises: ValueError for a task without logits."""
        if not isinstance(task, PredictsTokens):
            raise ValueError(
                f"optimizer=sophia draws labels from a model's logits, which {type(task).__name__} does not offer; "
                "choose another optimizer, such as optimizer=adamw"
            )

    def observe(self, task: Task, batch: dict[str, Any]) -> None:
        """Takes the estimate of a step that wants one, from its first batch."""
        if self._hessian is not None or self.param_groups[0].get("step", 0) % self.every:
            return
        logits = task.trace["logits"].flatten(0, -2).float()
        counted = batch["targets"].flatten() != -100
        key = ((task.seed * 1_000_003 + task.batches_trained) * 65_536 + task.global_rank) % 2**63
        generator = torch.Generator(logits.device).manual_seed(key ^ 0x50F1A)
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(-1)
        loss = F.cross_entropy(logits, labels.masked_fill(~counted, -100))
        parameters = [p for group in self.param_groups for p in group["params"]]
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        scale = self.gamma * counted.sum()
        squares = [
            torch.zeros_like(p) if g is None else scale * g.detach().square() for p, g in zip(parameters, found, strict=True)
        ]
        self._hessian = [task.trainer.strategy.reduce(h, reduce_op="mean") for h in squares]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        hessian, self._hessian = self._hessian, None
        if hessian is None and not self.param_groups[0].get("step", 0):
            raise ValueError(
                "optimizer=sophia: no estimate of the curvature before the first step; train through a task of Etude"
            )
        super().step(hessian=hessian)
        for state in self.state.values():  # it is in hessian_moment now; checkpoints need not carry it
            state.pop("hessian", None)
        return loss


def _listed(params: Groups) -> Any:
    return [dict(group) if isinstance(group, dict) else group for group in params]


def _pair(name: str, betas: Sequence[float]) -> tuple[float, float]:
    one, two = betas
    if not (0 <= one < 1 and 0 <= two < 1):
        raise ValueError(f"optimizer {name}: betas are {list(betas)}, must both be in [0, 1)")
    return float(one), float(two)
