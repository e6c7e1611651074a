"""Technique balance: balances the loss terms of each player, by factors or by combining their gradients."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from etude.core import lightning
from etude.core.sharding import is_sharded
from etude.core.task import Task
from etude.core.technique import Power, Technique
from etude.losses.balancing import dynamic_average, gradient_norms, running_scale, uncertainty

log = logging.getLogger(__name__)

Method = Literal["fixed", "adaptive", "uncertainty", "dwa", "gradnorm", "pcgrad", "cagrad", "imtl"]
INITIAL_STATE: dict[str, tuple[float, ...]] = {  # of a term that is new, by method
    "adaptive": (0.0, 0.0),
    "uncertainty": (0.0,),
    "dwa": (0.0, 0.0, torch.nan, torch.nan),
    "gradnorm": (1.0, torch.nan),
}
BY_GRADIENTS = ("gradnorm", "pcgrad", "cagrad", "imtl")


class Balance(Technique):
    """Multiplies the `loss_weights` of each player's terms by factors that are adjusted during training.

    Methods that use the values of the terms, at almost no cost (formulas in `etude.losses.balancing`):

    - fixed: the factors are 1; a baseline for comparisons.
    - adaptive: each term is divided by its running mean magnitude; its weight is then its share of the loss.
    - uncertainty: learned log-variances (Kendall et al. 2018).
    - dwa: a larger weight for terms that decrease slowly (Liu et al. 2019).

    Methods that use the gradients, with one backward pass for each term:

    - gradnorm: learned weights that make the norms of the gradients similar (Chen et al. 2018).
    - pcgrad: removes from each gradient the component that opposes another one (Yu et al. 2020).
    - cagrad: near the mean gradient, the direction that improves the term with the least progress most (Liu et al. 2021).
    - imtl: the direction onto which all gradients have equal projections (Liu et al. 2021, IMTL-G); `loss_weights` have no
      effect.

    The last three are torchjd's, computed from the inner products of the gradients in float64. The weights of cagrad and imtl sum
    to about 1; they are multiplied by the number of terms, so that the same learning rate fits. A term with a zero gradient is
    not balanced.

    The task's `optional_terms`, such as penalties, keep their own weight and are not balanced. If a player has only one other
    term, its gradient is unchanged. A term may be missing on some batches; its factor is then not updated. Factors are logged as
    `train/balance/<term>`. A batch with values that are not finite does not change the state.

    When to use: tasks with several terms of different size, such as a GAN's generator. Start with adaptive; use pcgrad if terms
    have conflicting gradients. A term that a technique adds has the technique's weight as its share. A term that corrects another
    one, such as label smoothing, gets that term's factor. With Adam, a common factor of all terms makes hardly a difference.

    Args:
        method: see above.
        decay: adaptive: decay of the running means per batch, in (0, 1).
        rate: uncertainty, gradnorm: learning rate of the factors per batch, in (0, 1].
        period: dwa: number of batches in an average, at least 1.
        temperature: dwa: above 0; higher values give more equal weights.
        alpha: gradnorm: how strongly terms that train slowly are favoured, at least 0.
        radius: cagrad: c, the distance from the mean gradient as a share of its norm, in [0, 1).
        limit: bounds every factor to [1 / limit, limit], above 1.
        seed: of the random order of projections in pcgrad.

    Raises:
        ValueError: an option is out of its range; in setup, the task has one term and no technique adds another, or a
            method that needs the gradient of each term is used on several devices.

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
            raise ValueError(f"technique.balance.method is {method!r}, must be one of {', '.join(get_args(Method))}")
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
                raise ValueError(f"technique.balance.{name} is {value}, must be {span}")
        self.method: Method = method
        self.decay, self.rate, self.period, self.temperature = decay, rate, period, temperature
        self.alpha, self.radius, self.limit = alpha, radius, limit
        powers = {Power.WEIGHING, *([Power.BACKWARD] if method in BY_GRADIENTS else [])}
        self.claims = frozenset(powers)  # type: ignore[misc]  # depends on the method
        self._aggregate = _aggregator(method, radius)
        self.batches = 0
        self._state: dict[str, Tensor] = {}
        self._factors: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        self._weights: dict[str, float | Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        task = type(pl_module).__name__
        if _is_distributed(trainer) and self.method in BY_GRADIENTS:
            raise ValueError(
                f"technique balance with method={self.method} needs the gradient of each term of {task}; it is not "
                "available on several devices; choose adaptive, uncertainty or dwa, or trainer.devices=1"
            )
        terms: Sequence[str] = pl_module.terms if isinstance(pl_module, Task) else ()
        callbacks: Iterable[Any] = lightning.callbacks_of(trainer)
        adding = [c for c in callbacks if isinstance(c, Technique) and type(c).extra_losses is not Technique.extra_losses]
        if len(terms) == 1 and not adding:
            raise ValueError(
                f"technique balance needs several terms, {task} has only one ({terms[0]}) and no other technique adds one; "
                "remove it from technique=[...]"
            )

    def weigh(self, task: Task, losses: Mapping[str, Tensor]) -> Tensor:
        """Returns sum_i w_i f_i L_i; for a method that uses gradients, the sum without factors, for logging."""
        terms = task.weighted(losses)
        terms = terms if self.method == "fixed" else _with_corrections(task, terms)
        if self.batches == 0 and len(terms) == 1:
            log.warning("balance has only one term so far (%s); it has no effect until there is another", next(iter(terms)))
        weights = task.weights_of(losses)
        self._weights |= {name: weights[name] for name in terms}
        self._values = {name: losses[name].detach() for name in terms}
        if self.method in INITIAL_STATE and self.method not in BY_GRADIENTS:
            self._factors = self._update_factors(task, terms)
            terms = {name: term * self._factors[name] if name in self._factors else term for name, term in terms.items()}
        self.batches += 1
        return torch.stack(list(terms.values())).sum()

    # --- methods that use values ---

    def _update_factors(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Updates the state with this batch; returns the factors of the terms of each player that has several."""
        like = next(iter(self._values.values())).float()
        missing = torch.full_like(like, torch.nan)
        for name in losses.keys() - self._state.keys() - task.optional_terms:
            self._state[name] = torch.tensor(INITIAL_STATE[self.method], device=like.device)
        factors: dict[str, Tensor] = {}
        for names in _by_player(self._state).values():
            values = torch.stack([self._values[name].float() if name in self._values else missing for name in names])
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

    # --- methods that use gradients ---

    def backward(self, task: Task, terms: Mapping[str, Tensor]) -> None:
        self._factors = {}
        terms = _with_corrections(task, terms)
        differentiable = {name: term for name, term in terms.items() if term.requires_grad}
        for names in _by_player(differentiable).values():
            balanced = [name for name in names if name not in task.optional_terms]
            balanced = balanced if len(balanced) > 1 else []
            if plain := [terms[name] for name in names if name not in balanced]:
                torch.autograd.backward(plain, inputs=_leaves(plain), retain_graph=True)
            if not balanced:
                continue
            leaves = _leaves(terms[name] for name in balanced)
            rows = [torch.autograd.grad(terms[n], leaves, retain_graph=True, allow_unused=True) for n in balanced]
            factors = self._gradient_factors(task, balanced, _inner_products(leaves, rows))
            self._factors.update(zip(balanced, factors.unbind(), strict=True))
            _accumulate(leaves, rows, factors.tolist())

    def _gradient_factors(self, task: Task, names: Sequence[str], gramian: Tensor) -> Tensor:
        """Returns the factor of each term's gradient; 1 if its gradient is zero or if any gradient is not finite."""
        factors = torch.ones(len(names), dtype=torch.float64)
        squares = gramian.diagonal()
        active = squares > 1e-16 * squares.max()
        count = int(active.sum())
        if not torch.isfinite(gramian).all() or (count < 2 and self.method != "gradnorm"):
            return factors
        if self.method == "gradnorm":
            return self._gradnorm_factors(names, squares.sqrt())
        inner = gramian[active][:, active]
        with torch.random.fork_rng(devices=[]):  # torchjd's pcgrad uses the global random generator
            torch.default_generator.manual_seed(self.generator(task.batches_trained).initial_seed())
            found = self._aggregate(inner / inner.trace())
        found = found if self.method == "pcgrad" else found * count
        if torch.isfinite(found).all():
            factors[active] = found.clamp(-self.limit, self.limit)
        return factors

    def _gradnorm_factors(self, names: Sequence[str], norms: Tensor) -> Tensor:
        values = torch.stack([self._values[name].double().cpu() for name in names])
        weights = torch.stack([torch.as_tensor(self._weights[name]).double().cpu() for name in names])
        start = torch.tensor(INITIAL_STATE["gradnorm"], dtype=torch.float64)
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
            log.warning("balance continues with method=%s and without the state of method=%s", self.method, state_dict["method"])


Rows = Sequence[Sequence[Tensor | None]]  # for each term, its gradient for each parameter; None if there is none


def _aggregator(method: str, radius: float) -> Callable[[Tensor], Tensor]:
    """Returns a function from inner products of gradients [m, m] to weights [m]."""
    if method not in ("pcgrad", "cagrad", "imtl"):
        return lambda gramian: torch.ones(len(gramian))
    from torchjd.aggregation import CAGradWeighting, IMTLGWeighting, PCGradWeighting  # slow to import: cagrad's solver

    if method == "cagrad":
        return CAGradWeighting(c=radius, norm_eps=1e-8)
    return PCGradWeighting() if method == "pcgrad" else IMTLGWeighting()


def _is_distributed(trainer: pl.Trainer) -> bool:
    return trainer.world_size > 1 or is_sharded(trainer)


def _with_corrections(task: Task, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weighted terms, with corrections added to the terms that they correct: they must get the same factor."""
    found = dict(terms)
    for name, base in task.composition.corrections.items():
        if name in found and base in found:
            found[base] = found[base] + found.pop(name)
    return found


def _by_player(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups the names of terms by player, sorted; names without a player are one group.

    A player may also be one of a technique, such as a critic.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(name.rpartition("/")[0].partition("/")[0], []).append(name)
    return found


def _leaves(terms: Iterable[Tensor]) -> list[Tensor]:
    """Returns all leaf tensors of the terms' graph that require a gradient, including parameters of other techniques."""
    found: dict[int, Tensor] = {}
    pending = [term.grad_fn for term in terms]
    seen = set(pending)
    while pending:
        node = pending.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            found[id(leaf)] = leaf
        for parent, _ in getattr(node, "next_functions", ()):
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return list(found.values())


def _inner_products(leaves: Sequence[Tensor], rows: Rows) -> Tensor:
    """Returns the inner products [m, m] of the terms' gradients with respect to all parameters, float64 on the CPU."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for leaf, gradients in zip(leaves, zip(*rows, strict=True), strict=True):
        like = next((g for g in gradients if g is not None), None)
        if like is None or not isinstance(leaf, nn.Parameter):  # the input of a gradient penalty is not a parameter
            continue
        flat = torch.stack([torch.zeros_like(like).flatten() if g is None else g.flatten() for g in gradients]).float()
        total += (flat @ flat.T).double().cpu()
    return total


def _accumulate(leaves: Sequence[Tensor], rows: Rows, factors: Sequence[float]) -> None:
    """Adds sum_i f_i g_i to `.grad` of each leaf."""
    for leaf, gradients in zip(leaves, zip(*rows, strict=True), strict=True):
        parts = [factor * gradient for factor, gradient in zip(factors, gradients, strict=True) if gradient is not None]
        if not parts:
            continue
        total = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        leaf.grad = total if leaf.grad is None else leaf.grad + total
