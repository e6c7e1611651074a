"""Optimizers that PyTorch does not have; adapters of the package pytorch_optimizer.

Each is called with the groups of `Task.parameter_groups`: the groups of norms, biases and embeddings have `weight_decay` 0, those
of a player with its own learning rate have `lr`. An optimizer that needs its task defines `attach(task)`, called once when it is
built. One that needs each training batch defines `observe(task, batch)`, called while the task's `trace` still has its graph.

The default learning rates suit models of 1 to 10 million parameters and runs of a few hundred steps. They were found on chorales
(grid model of one million parameters, 150 steps) by doubling the rate, and were set below the best one there, since larger models
and longer runs need lower rates; Muon's also on five genres in REMI tokens (400 steps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pytorch_optimizer.optimizer.lion import Lion
from pytorch_optimizer.optimizer.lookahead import Lookahead
from pytorch_optimizer.optimizer.schedulefree import ScheduleFreeAdamW
from pytorch_optimizer.optimizer.soap import SOAP
from pytorch_optimizer.optimizer.sophia import SophiaH
from torch import Tensor
from torch.optim import Optimizer

from etude.core.protocols import PredictsTokens
from etude.optim.muon import Muon

if TYPE_CHECKING:
    from etude.core.task import Task

Groups = Iterable[dict[str, Any]]


def lion(params: Groups, *, lr: float = 0.0006, betas: Sequence[float] = (0.95, 0.98), weight_decay: float = 0.25) -> Optimizer:
    """Lion: updates by the sign of an interpolated momentum; its state is half as large as AdamW's.

    u = sign(b1 m + (1 - b1) g); w <- w - lr (u + weight_decay w); m <- b2 m + (1 - b2) g.

    When to use: if memory is short or batches are large. Learning rates are 3 to 10 times lower than for AdamW, weight decays
    as many times higher.

    Source: Chen et al. 2023, algorithm 2; these betas are its section 5's for language models.
    """
    return Lion(_listed(params), lr=lr, betas=_pair("lion", betas), weight_decay=weight_decay)


def soap(
    params: Groups, *, lr: float = 0.004, betas: Sequence[float] = (0.95, 0.95), weight_decay: float = 0.1,
    precondition_frequency: int = 10, max_precondition_dim: int = 2048,
) -> Optimizer:  # fmt: skip
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner; needs fewer steps, each of which takes longer.

    The first step only initializes the preconditioner and changes no weights.

    When to use: few steps on large batches. Each weight has two further square matrices for each of its dimensions.

    Source: Vyas et al. 2024, algorithm 3.

    Args:
        precondition_frequency: steps between two updates of the basis, at least 1.
        max_precondition_dim: a larger dimension, such as that of a vocabulary, is not preconditioned.
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
    """Muon: orthogonalized momentum for matrices, and AdamW with its own learning rate for norms, biases and embeddings.

    For the matrices of groups with weight decay (a convolution kernel is reshaped to [out, -1]), with M the momentum:
    w <- (1 - lr weight_decay) w - lr * 0.2 sqrt(max(rows, columns)) * NewtonSchulz(g + momentum (M - g)), whose elements
    are about as large as those of an AdamW update, so that learning rates are comparable. A player's own learning rate is for
    its matrices; its other parameters get that rate times adamw_lr / lr.

    Matrices that trainer=fsdp shards are gathered before NewtonSchulz. That runs in bfloat16, or in float32 on a CPU without
    instructions for bfloat16. In bfloat16 a difference in a gradient's last bits, as between fsdp and ddp, may change a weight by
    up to a tenth of a step.

    When to use: networks whose parameters are mostly matrices; they need fewer steps. It costs little with large batches.

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
    """Lookahead around AdamW: every k steps the weights are set to a point between the old slow and the new fast weights.

    slow <- slow + alpha (fast - slow); fast <- slow.

    When to use: if a high learning rate makes training unstable; the weights are then nearly an average. It costs one copy of
    the weights.

    Source: Zhang et al. 2019, algorithm 1, over PyTorch's AdamW.
    """
    inner = torch.optim.AdamW(list(params), lr=lr, betas=_pair("lookahead_adamw", betas), weight_decay=weight_decay, fused=fused)
    return Lookahead(inner, k=k, alpha=alpha)


class ScheduleFree(ScheduleFreeAdamW):
    """AdamW without a schedule: it evaluates gradients at y, between the fast weights z and their average x, the final model.

    y = (1 - b1) z + b1 x is trained, z <- z - lr (g / (sqrt(v) + eps) + weight_decay y), x <- (1 - c) x + c z with
    c = lr_max^2 / sum of lr_max^2. While training, the task's weights are y; technique=[schedule_free] validates and saves x.

    When to use: if the length of the run is not fixed. It needs a warm-up (scheduler=constant) and higher rates than AdamW.

    Source: Defazio et al. 2024, algorithm 1.

    Args:
        betas: b1 of the interpolation and b2 of the second moment.
    """

    def __init__(
        self, params: Groups, *, lr: float = 0.006, betas: Sequence[float] = (0.9, 0.98), weight_decay: float = 0.1
    ) -> None:
        super().__init__(_listed(params), lr=lr, betas=_pair("schedule_free", betas), weight_decay=weight_decay)

    def attach(self, task: Task) -> None:
        """Raises: ValueError if technique=[schedule_free] is missing, so that validation would use y."""
        if all(technique.name != "schedule_free" for technique in task.composition.techniques):
            raise ValueError(
                "optimizer=schedule_free needs its technique, which evaluates the average; add schedule_free to technique=[...]"
            )

    @torch.no_grad()
    def evaluation_weights(self) -> dict[Tensor, Tensor]:
        """Returns the average x = y + (1 - 1 / b1) (z - y) of each parameter that has been trained, as new tensors."""
        return {
            p: p.lerp(self.state[p]["z"], 1 - 1 / group["betas"][0])
            for group in self.param_groups
            for p in group["params"]
            if "z" in self.state[p]
        }


class SophiaG(SophiaH):
    """Sophia-G: momentum divided by an estimate of the Hessian's diagonal, then clipped elementwise.

    m <- b1 m + (1 - b1) g; every `update_period` steps h <- b2 h + (1 - b2) B ghat^2, where ghat is the gradient of the mean
    cross-entropy of B labels drawn from the model's own logits (Gauss-Newton-Bartlett); w <- w - lr weight_decay w
    - lr clip(m / max(gamma h, eps), 1). The random labels depend on (task's seed, rank, batches trained) alone.

    When to use: language models; a task without logits is refused. It costs one more backward pass every update_period steps.

    Source: Liu et al. 2023, algorithms 2 and 3. Deviation: ghat uses the forward pass of the training batch.

    Args:
        gamma: in (0, 1]; larger values clip fewer elements. Good values leave 10 to 50 % of them unclipped.
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
        # the huge period turns SophiaH's own estimate (Hutchinson) off after step 1, where `step` passes ours
        super().__init__(
            _listed(params), lr=lr, betas=_pair("sophia", betas), weight_decay=weight_decay, p=1.0, update_period=2**62
        )
        self.gamma, self.every = gamma, update_period
        self._hessian: list[Tensor] | None = None

    def attach(self, task: Task) -> None:
        """Raises: ValueError for a task without logits."""
        if not isinstance(task, PredictsTokens):
            raise ValueError(
                f"optimizer=sophia draws labels from a model's logits, but {type(task).__name__} has none; "
                "choose another optimizer, such as optimizer=adamw"
            )

    def observe(self, task: Task, batch: dict[str, Any]) -> None:
        """Estimates the Hessian's diagonal from the first batch of a step in which an estimate is due."""
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
                "optimizer=sophia: there is no estimate of the Hessian before the first step; train with a task of Etude"
            )
        super().step(hessian=hessian)
        for state in self.state.values():  # hessian_moment includes it now; checkpoints don't need it
            state.pop("hessian", None)
        return loss


def _listed(params: Groups) -> Any:
    return [dict(group) if isinstance(group, dict) else group for group in params]


def _pair(name: str, betas: Sequence[float]) -> tuple[float, float]:
    one, two = betas
    if not (0 <= one < 1 and 0 <= two < 1):
        raise ValueError(f"optimizer {name}: betas are {list(betas)}, must both be in [0, 1)")
    return float(one), float(two)
