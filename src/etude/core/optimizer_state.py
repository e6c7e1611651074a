"""Handles optimizer state: carries it over to a new optimizer, checks it, and restores it after a skipped step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from etude.core.any_task import AnyTask
from etude.core.protocols import WrapsOptimizer

COUNTERS = ("step", "counter", "k", "weight_sum", "lr_max")  # state that optimizers keep for a group, not for a parameter
MOMENTS = (  # state of the shape of its parameter
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum", "momentum_buffer", "hessian_moment", "variance", "z", "slow_params",
)  # fmt: skip
COPIES = ("z", "slow_params")  # copies of the weights that optimizers keep (ScheduleFree, Lookahead)
PRECONDITIONERS = ("GG", "Q")  # SOAP's: for each dimension a square matrix, or nothing


def carry_state(old: Optimizer, new: Optimizer, *, grown: Mapping[nn.Parameter, nn.Parameter] | None = None) -> None:
    """Copies the state of the parameters that both optimizers train (moments, counters) to a new optimizer of the same class.

    grown: enlarged parameter -> the smaller parameter that it replaces, whose values are its first entries in every dimension.
        The state of those entries is copied; the state of the new entries is zero.
    """
    former = grown or {}
    pairs = [(old, new)]
    if isinstance(old, WrapsOptimizer) and isinstance(new, WrapsOptimizer):
        pairs.append((old.optimizer, new.optimizer))
    for before, after in pairs:
        groups = {p: group for group in before.param_groups for p in group["params"]}
        for group in after.param_groups:
            for p in group["params"]:
                source = former.get(p, p)
                if source in before.state:
                    state = before.state[source]
                    after.state[p] = state if source is p else {k: _padded(v, source, p) for k, v in state.items()}
            known = next((groups[former.get(p, p)] for p in group["params"] if former.get(p, p) in groups), {})
            group.update({name: known[name] for name in COUNTERS if name in known})


def _padded(value: Any, source: Tensor, weight: Tensor) -> Any:
    """Pads a state tensor of `source` with zeros to the shape of the larger `weight`; state of another shape stays as it is."""
    if not isinstance(value, Tensor) or value.shape != source.shape:
        return value
    larger = value.new_zeros(weight.shape)
    larger[tuple(slice(size) for size in source.shape)] = value
    return larger


def copies_of_weights(optimizers: Iterable[Optimizer]) -> dict[Tensor, list[Tensor]]:
    """Returns the optimizers' own copies of each weight; who sets a weight after a step sets these, too."""
    found: dict[Tensor, list[Tensor]] = {}
    every = [*optimizers]
    every += [each.optimizer for each in every if isinstance(each, WrapsOptimizer)]
    for optimizer in every:
        for weight, state in optimizer.state.items():
            mine = [state[name] for name in COPIES if isinstance(state.get(name), Tensor)]
            found.setdefault(weight, []).extend(copy for copy in mine if copy.shape == weight.shape)
    return found


def skip_next_step(task: AnyTask) -> Callable[[], None]:
    """Removes all gradients, so that the next optimizer step changes no weight and no moment.

    Returns a function to call after that step: it restores the group counters, which optimizers increase in any case.
    """
    for parameter in task.parameters():
        parameter.grad = None
    groups = [group for optimizer in task.trainer.optimizers for group in optimizer.param_groups]
    counters = [{name: group[name] for name in COUNTERS if name in group} for group in groups]
    for group in groups:
        if "counter" in group:  # of Lookahead, which would otherwise synchronize its slow weights a step early
            group["counter"] -= 1

    def restore_counters() -> None:
        for group, saved in zip(groups, counters, strict=True):
            group.update(saved)
            for name in set(COUNTERS) & group.keys() - saved.keys():  # the first step creates some
                del group[name]

    return restore_counters


def check_state(optimizers: Iterable[Optimizer], parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Checks that the moments of each parameter have its shape; otherwise the first step would fail, or be wrong.

    Factors of moments (Adafactor) and preconditioners (SOAP) are checked, too; state of unknown names is not.

    Args:
        parameters: the task's parameters with their names, for the message.

    Raises:
        ValueError: names the parameter, what is wrong and the right shape.
    """
    names: dict[Tensor, str] = {p: name for name, p in parameters}
    found = [*optimizers]
    found += [optimizer.optimizer for optimizer in found if isinstance(optimizer, WrapsOptimizer)]
    for optimizer in found:
        for p, state in optimizer.state.items():
            for name, value in state.items():
                shapes = _shapes(name, p.shape)
                values = value if name in PRECONDITIONERS and isinstance(value, list) else [value]
                if shapes is not None and not _fit(values, shapes):
                    right = ", ".join(str(list(shape)) for shape in shapes)
                    told = ", ".join(str(list(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in values)
                    raise ValueError(
                        f"the optimizer's {name} of {names.get(p, 'a parameter')} has the shape {told}, must have {right}; "
                        "resume with the networks and the optimizer of the run that wrote it"
                    )


def _shapes(name: str, shape: Sequence[int]) -> list[tuple[int, ...]] | None:
    """Returns the shapes of the tensors of the state `name` for a parameter of this shape; None for an unknown name."""
    if name in MOMENTS:
        return [tuple(shape)]
    if name == "row_var":
        return [(*shape[:-1], 1)]
    if name == "col_var":
        return [(*shape[:-2], 1, *shape[-1:])]
    return [(size, size) for size in shape] if name in PRECONDITIONERS else None


def _fit(values: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Returns whether the tensors have these shapes; an empty list stands for a dimension without a preconditioner."""
    if len(values) != len(shapes):
        return False
    return all(
        (isinstance(value, list) and not value) or (isinstance(value, Tensor) and tuple(value.shape) == shape)
        for value, shape in zip(values, shapes, strict=True)
    )
