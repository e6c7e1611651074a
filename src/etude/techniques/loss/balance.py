"""Balancing of loss terms, by factors or by surgery on their gradients, within each player."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from etude.core import lightning
from etude.core.task import Task
from etude.core.technique import Power, Technique
from etude.losses.balancing import dynamic_average, gradient_norms, running_scale, uncertainty

log = logging.getLogger(__name__)

Method = Literal["fixed", "adaptive", "uncertainty", "dwa", "gradnorm", "pcgrad", "cagrad", "imtl"]
START: dict[str, tuple[float, ...]] = {  # what a rule keeps of a term that it has not seen yet
    "adaptive": (0.0, 0.0),
    "uncertainty": (0.0,),
    "dwa": (0.0, 0.0, torch.nan, torch.nan),
    "gradnorm": (1.0, torch.nan),
}
BY_GRADIENTS = ("gradnorm", "pcgrad", "cagrad", "imtl")


class Balance(Technique):
    """Balances the terms of each player of a task: the task's `loss_weights` times factors that follow training.

    By the terms' values, at no cost worth naming (`etude.losses.balancing` has the formulas):

    - fixed: the task's own weights, nothing else: the baseline of a comparison.
    - adaptive: each term divided by its running mean magnitude; a term's weight is then its share of the loss.
    - uncertainty: learned log-variances (Kendall et al. 2018).
    - dwa: more weight for terms that fall slowly (Liu et al. 2019).

    By their gradients, with one backward pass for each term:

    - gradnorm: learned weights that make the gradients' norms meet (Chen et al. 2018).
    - pcgrad: each gradient without what opposes another one (Yu et al. 2020). Two terms whose gradients agree are summed.
    - cagrad: near the mean gradient, what helps the worst-off term most (Liu et al. 2021).
    - imtl: the direction on which all gradients have equal projections (Liu et al. 2021, IMTL-G); `loss_weights` have no
      say in it.

    The last three are torchjd's, computed from the terms' inner products in float64; cagrad and imtl, whose weights sum to
    about 1, are multiplied by the number of terms, so that the learning rate keeps its meaning. A term without a
    gradient takes no part.

    Penalties and the like keep their own weight and take no part: the terms that a task declares as lazy. A player with one
    term besides gets exactly its plain gradient. Terms may come and go: a factor rests while its term is away. Factors are
    logged as `train/balance/<term>`; a batch with values that are not finite leaves the state alone.

    When to use: tasks with several terms of unlike size, a GAN's generator above all. Start with adaptive; pcgrad where terms
    pull against each other. What a technique adds has that technique's weight as its share; what corrects another term, such
    as label smoothing, goes with it. With Adam a common factor of all terms makes hardly a difference.

    Args:
        method: see above.
        decay: adaptive: of the running means per batch, in (0, 1).
        rate: uncertainty, gradnorm: step of the learned factors per batch, in (0, 1].
        period: dwa: batches of an average, at least 1.
        temperature: dwa: above 0, larger is more even.
        alpha: gradnorm: how much a term that lags behind is favoured, at least 0.
        radius: cagrad: c, how far from the mean gradient as a share of its norm, in [0, 1).
        limit: bounds every factor to [1 / limit, limit], above 1.
        seed: of the orders in which pcgrad projects.

    Raises:
        ValueError: an option out of its range; at setup, a task with one term to which no technique adds another, or
            a method that needs each term's gradient on several devices.

    Source: torchjd 0.18 (pcgrad, cagrad, imtl); the papers named.
    """

    def __init__(
        self,
        *,
        method: Method = "adaptive",
        decay: float = 0.99,
        rate: float = 0.025,
        period: int = 100,
        temperature: float = 2.0,
        alpha: float = 1.5,
        radius: float = 0.4,
        limit: float = 100.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if method not in get_args(Method):
            raise ValueError(f"balance.method is {method!r}, must be one of {', '.join(get_args(Method))}")
        for name, value, valid, span in (
            ("decay", decay, 0 < decay < 1, "in (0, 1); 0.99 is a good start"),
            ("rate", rate, 0 < rate <= 1, "in (0, 1]; 0.025 is a good start"),
            ("period", period, period >= 1, "at least 1 batch; 100 is a good start"),
            ("temperature", temperature, temperature > 0, "above 0; 2 is a good start"),
            ("alpha", alpha, alpha >= 0, "at least 0; 1.5 is a good start"),
            ("radius", radius, 0 <= radius < 1, "in [0, 1); 0.4 is a good start"),
            ("limit", limit, limit > 1, "above 1; 100 is a good start"),
        ):
            if not valid:
                raise ValueError(f"balance.{name} is {value}, must be {span}")
        self.method: Method = method
        self.decay, self.rate, self.period, self.temperature = decay, rate, period, temperature
        self.alpha, self.radius, self.limit = alpha, radius, limit
        powers = {Power.WEIGHING, *([Power.BACKWARD] if method in BY_GRADIENTS else [])}
        self.claims = frozenset(powers)  # type: ignore[misc]  # which ones is the method's affair
        self._aggregate = _aggregator(method, radius)
        self.batches = 0
        self._state: dict[str, Tensor] = {}
        self._factors: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        self._weights: dict[str, float | Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        task = type(pl_module).__name__
        if _splits(trainer) and self.method in BY_GRADIENTS:
            raise ValueError(
                f"technique balance with method={self.method} needs each term's gradient, which {task} has not on several "
                "devices; choose adaptive, uncertainty or dwa, or trainer.devices=1"
            )
        terms: Sequence[str] = pl_module.terms if isinstance(pl_module, Task) else ()
        callbacks: Iterable[Any] = lightning.callbacks_of(trainer)
        adding = [c for c in callbacks if isinstance(c, Technique) and type(c).extra_losses is not Technique.extra_losses]
        if len(terms) == 1 and not adding:
            raise ValueError(
                f"technique balance needs several terms, {task} has only one ({terms[0]}) and no other technique adds one; "
                "take it out of technique=[...]"
            )

    def weigh(self, task: Task, losses: Mapping[str, Tensor]) -> Tensor:
        """Returns sum_i w_i f_i L_i; of a method that works on gradients the plain sum, for the log."""
        terms = task.weighted(losses)
        terms = terms if self.method == "fixed" else _corrected(task, terms)
        if self.batches == 0 and len(terms) == 1:
            log.warning("balance has only one term so far (%s) and acts when another joins it", next(iter(terms)))
        weights = task.weights_of(losses)
        self._weights |= {name: weights[name] for name in terms}
        self._values = {name: losses[name].detach() for name in terms}
        if self.method in START and self.method not in BY_GRADIENTS:
            self._factors = self._follow(task, terms)
            terms = {name: term * self._factors[name] if name in self._factors else term for name, term in terms.items()}
        self.batches += 1
        return torch.stack(list(terms.values())).sum()

    # By values.

    def _follow(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The factors of the terms of each player that has more than one."""
        like = next(iter(self._values.values())).float()
        away = torch.full_like(like, torch.nan)
        for name in losses.keys() - self._state.keys() - task.optional_terms:
            self._state[name] = torch.tensor(START[self.method], device=like.device)
        factors: dict[str, Tensor] = {}
        for names in _by_player(task, self._state).values():
            values = torch.stack([self._values[name].float() if name in self._values else away for name in names])
            values = task.trainer.strategy.reduce(values, reduce_op="mean")
            state = torch.stack([self._state[name].to(values) for name in names])
            weights = torch.stack([torch.as_tensor(self._weights[name]).to(values) for name in names])
            state, found = self._rule(state, values, weights)
            self._state.update(zip(names, state.unbind(), strict=True))
            if len(names) > 1:
                factors.update((name, factor) for name, factor in zip(names, found.unbind(), strict=True) if name in losses)
        return factors

    def _rule(self, state: Tensor, values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if self.method == "adaptive":
            return running_scale(state, values, weights, decay=self.decay, limit=self.limit)
        if self.method == "uncertainty":
            return uncertainty(state, values, rate=self.rate, limit=self.limit)
        ends = (self.batches + 1) % self.period == 0
        return dynamic_average(state, values, temperature=self.temperature, ends_period=ends, limit=self.limit)

    # By gradients.

    def backward(self, task: Task, terms: Mapping[str, Tensor]) -> None:
        self._factors = {}
        terms = _corrected(task, terms)
        differentiable = {name: term for name, term in terms.items() if term.requires_grad}
        for names in _by_player(task, differentiable).values():
            together = [name for name in names if name not in task.optional_terms]
            together = together if len(together) > 1 else []
            if plain := [terms[name] for name in names if name not in together]:
                torch.autograd.backward(plain, inputs=_leaves(plain), retain_graph=True)
            if not together:
                continue
            leaves = _leaves(terms[name] for name in together)
            rows = [torch.autograd.grad(terms[n], leaves, retain_graph=True, allow_unused=True) for n in together]
            factors = self._from_gradients(task, together, _inner_products(leaves, rows))
            self._factors.update(zip(together, factors.unbind(), strict=True))
            _accumulate(leaves, rows, factors.tolist())

    def _from_gradients(self, task: Task, names: Sequence[str], gramian: Tensor) -> Tensor:
        """The factor of each term's gradient, 1 where its gradient is nothing or any is not finite."""
        factors = torch.ones(len(names), dtype=torch.float64)
        squares = gramian.diagonal()
        active = squares > 1e-16 * squares.max()
        count = int(active.sum())
        if not torch.isfinite(gramian).all() or (count < 2 and self.method != "gradnorm"):
            return factors
        if self.method == "gradnorm":
            return self._norms_meet(names, squares.sqrt())
        inner = gramian[active][:, active]
        with torch.random.fork_rng(devices=[]):  # torchjd's pcgrad draws its orders from the global generator
            torch.default_generator.manual_seed(self.generator(task.batches_trained).initial_seed())
            found = self._aggregate(inner / inner.trace())
        found = found if self.method == "pcgrad" else found * count
        if torch.isfinite(found).all():
            factors[active] = found.clamp(-self.limit, self.limit)
        return factors

    def _norms_meet(self, names: Sequence[str], norms: Tensor) -> Tensor:
        values = torch.stack([self._values[name].double().cpu() for name in names])
        weights = torch.stack([torch.as_tensor(self._weights[name]).double().cpu() for name in names])
        start = torch.tensor(START["gradnorm"], dtype=torch.float64)
        state = torch.stack([self._state.get(name, start).double() for name in names])
        options: Any = {"alpha": self.alpha, "rate": self.rate, "limit": self.limit}
        state, factors = gradient_norms(state, values, norms / weights.abs().clamp(min=1e-12), **options)
        self._state.update(zip(names, state.unbind(), strict=True))
        return factors

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._factors and self.is_logged(trainer):
            pl_module.log_dict({f"train/balance/{name}": factor.float() for name, factor in self._factors.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"method": self.method, "batches": self.batches, "terms": dict(self._state), "weights": dict(self._weights)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches, self._weights = state_dict["batches"], dict(state_dict.get("weights", {}))
        if state_dict["method"] == self.method:
            self._state = {name: term for name, term in state_dict["terms"].items() if name in self._weights}
        else:
            log.warning("balance goes on with method=%s, without the state of %s", self.method, state_dict["method"])


Rows = Sequence[Sequence[Tensor | None]]  # of each term: its gradient for each parameter, None where it has none


def _aggregator(method: str, radius: float) -> Callable[[Tensor], Tensor]:
    """What turns inner products of gradients [m, m] into weights [m]."""
    if method not in ("pcgrad", "cagrad", "imtl"):
        return lambda gramian: torch.ones(len(gramian))
    from torchjd.aggregation import CAGradWeighting, IMTLGWeighting, PCGradWeighting  # slow to import: cagrad's solver

    if method == "cagrad":
        return CAGradWeighting(c=radius, norm_eps=1e-8)
    return PCGradWeighting() if method == "pcgrad" else IMTLGWeighting()


def _splits(trainer: pl.Trainer) -> bool:
    return trainer.world_size > 1 or type(trainer.strategy).__name__ in ("ModelParallelStrategy", "FSDPStrategy")


def _corrected(task: Task, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weighted terms, each with what corrects it: scaled alone, a label smoothing would drive the targets away."""
    found = dict(terms)
    for name, base in task.composition.corrections.items():
        if name in found and base in found:
            found[base] = found[base] + found.pop(name)
    return found


def _by_player(task: Task, names: Iterable[str]) -> dict[str, list[str]]:
    """Names of terms by player, all sorted; those that name no player stay together."""
    players = task.players
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        prefix = name.partition("/")[0]
        found.setdefault(prefix if prefix in players else "", []).append(name)
    return found


def _leaves(terms: Iterable[Tensor]) -> list[Tensor]:
    """Every tensor that the terms were computed from and that wants a gradient, another technique's included."""
    found: dict[int, Tensor] = {}
    waiting = [term.grad_fn for term in terms]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            found[id(leaf)] = leaf
        for parent, _ in getattr(node, "next_functions", ()):
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return list(found.values())


def _inner_products(leaves: Sequence[Tensor], rows: Rows) -> Tensor:
    """Inner products of the terms' gradients for parameters [m, m], float64 on the CPU."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for leaf, gradients in zip(leaves, zip(*rows, strict=True), strict=True):
        like = next((g for g in gradients if g is not None), None)
        if like is None or not isinstance(leaf, nn.Parameter):  # an input of a gradient penalty is not trained
            continue
        flat = torch.stack([torch.zeros_like(like).flatten() if g is None else g.flatten() for g in gradients]).float()
        total += (flat @ flat.T).double().cpu()
    return total


def _accumulate(leaves: Sequence[Tensor], rows: Rows, factors: Sequence[float]) -> None:
    """Adds sum_i f_i g_i to `.grad` of each."""
    for leaf, gradients in zip(leaves, zip(*rows, strict=True), strict=True):
        parts = [factor * gradient for factor, gradient in zip(factors, gradients, strict=True) if gradient is not None]
        if not parts:
            continue
        total = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        leaf.grad = total if leaf.grad is None else leaf.grad + total
