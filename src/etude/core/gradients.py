"""Computes a task's losses and gradients on any batch and with any weights, without changing the state of the run."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call

from etude.core import lightning
from etude.core.any_task import AnyTask
from etude.core.batch import Batch
from etude.core.random_state import random_state, set_random_state


@runtime_checkable
class Restorable(Protocol):
    """An attribute of a task that `losses` changes and that is not a buffer, such as an image pool."""

    def unchanged(self) -> AbstractContextManager[None]:
        """Returns a context at whose end the object has its earlier contents again."""
        ...


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Enables gradients, also under `torch.no_grad()` and in inference mode (which `trainer.validate` uses)."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def losses_at(
    task: AnyTask, batch: Batch, *, parameters: Mapping[str, Tensor] | None, keep_state: bool, reduce: bool
) -> dict[str, Tensor]:
    """See `Task.losses_at`."""
    if parameters is not None:
        _refuse_split_weights(task, "losses_at with other parameters")
    trace, before = task.trace, task.in_losses_at
    task.in_losses_at = before or keep_state
    try:
        with (
            _state_restored(task.device, restorables(task)) if keep_state else nullcontext(),
            lightning.forward_context(lightning.trainer_of(task)),
        ):
            found = _losses_with(task, _without_inference_tensors(batch), parameters or {}, copy_buffers=keep_state)
    finally:
        task.in_losses_at = before
        if keep_state:
            task.trace = trace
    return {name: _mean(task, value) for name, value in found.items()} if reduce else found


def gradient_of(
    task: AnyTask, batch: Batch, *, parameters: Mapping[str, Tensor] | None, create_graph: bool, reduce: bool
) -> dict[str, Tensor]:
    """See `Task.gradient_of`."""
    _refuse_split_weights(task, "gradient_of")
    trainer = lightning.trainer_of(task)
    scaler = None if trainer is None else lightning.scaler_of(trainer)
    scale = 1.0 if scaler is None else scaler.get_scale()  # without it small gradients become 0 in half precision
    with gradients_enabled():
        given = None if parameters is None else _leaves(parameters)
        wrt = given if given is not None else {name: p for name, p in task.named_parameters() if p.requires_grad}
        losses = task.losses_at(batch, parameters=given)
        loss = torch.stack([task.loss_weights.get(name, 1.0) * losses[name] for name in sorted(losses)]).sum()
        made = torch.autograd.grad(loss * scale, list(wrt.values()), create_graph=create_graph, allow_unused=True)
        found = {name: value / scale for name, value in zip(wrt, made, strict=True) if value is not None}
        return {name: _mean(task, value) for name, value in found.items()} if reduce else found


def outputs_at(task: AnyTask, batch: Batch, method: str, *, parameters: Mapping[str, Tensor] | None = None) -> Any:
    """Returns `task.METHOD(batch)`, such as its logits, without changing the state of the run; see `Task.losses_at`.

    All calls within one step draw the same random numbers, so they share one dropout mask. parameters: tensors that replace the
    parameters of these names.
    """
    trace, before = task.trace, task.in_losses_at
    task.in_losses_at = True
    try:
        with _state_restored(task.device, restorables(task)), lightning.forward_context(lightning.trainer_of(task)):
            given = {f"task.{name}": value.clone() for name, value in task.named_buffers()}
            given |= {f"task.{name}": value for name, value in (parameters or {}).items()}
            return functional_call(_Calls(task, method), given, (_without_inference_tensors(batch),))
    finally:
        task.in_losses_at, task.trace = before, trace


class _Calls(nn.Module):
    """A module whose forward pass calls a method of a task, as `functional_call` needs it."""

    def __init__(self, task: nn.Module, method: str = "losses") -> None:
        super().__init__()
        self.task, self.method = task, method

    def forward(self, batch: Batch) -> Any:
        return getattr(self.task, self.method)(batch)


def _losses_with(task: nn.Module, batch: Batch, parameters: Mapping[str, Tensor], *, copy_buffers: bool) -> dict[str, Tensor]:
    names = {name for name, _ in task.named_parameters()}
    if unknown := parameters.keys() - names:
        tops = sorted({name.partition(".")[0] for name in names})
        raise ValueError(
            f"parameters names {sorted(unknown)[0]!r}, which {type(task).__name__} does not have; its names begin with "
            f"{', '.join(tops)}"
        )
    given = dict(parameters)
    if copy_buffers:  # use copies: restoring the values in place would break graphs that contain them
        given |= {name: value.clone() for name, value in task.named_buffers()}
    renamed = {f"task.{name}": value for name, value in given.items()}
    found: dict[str, Tensor] = functional_call(_Calls(task), renamed, (batch,))
    return found


def restorables(task: AnyTask) -> list[Restorable]:
    """Returns the attributes of the task that `losses` changes and that are not buffers."""
    return [value for value in vars(task).values() if _is_restorable(type(value))]  # type: ignore[arg-type]


@functools.cache
def _is_restorable(kind: type) -> bool:
    """Asked for each class once, since Python compares the members of a protocol slowly, and this is asked in each step."""
    return issubclass(kind, Restorable)


@contextmanager
def _state_restored(device: torch.device, objects: Iterable[Restorable]) -> Iterator[None]:
    """Restores the given objects and the random states of the CPU and of the task's device at the end of the context."""
    states = random_state(device)
    with ExitStack() as stack:
        for restorable in objects:
            stack.enter_context(restorable.unchanged())
        try:
            yield
        finally:
            set_random_state(device, states)


def _without_inference_tensors(batch: Batch) -> dict[str, Any]:
    """Returns the batch with copies of inference-mode tensors, which autograd can't use."""
    inside = torch.is_inference_mode_enabled()  # copies made here would be inference tensors, too
    return {
        name: value.clone() if isinstance(value, Tensor) and value.is_inference() and not inside else value
        for name, value in batch.items()
    }


def _leaves(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors; those that do not require a gradient are replaced by new leaves that do."""
    return {name: value if value.requires_grad else value.detach().requires_grad_() for name, value in parameters.items()}


def _mean(task: pl.LightningModule, value: Tensor) -> Tensor:
    mean = lightning.mean_over_ranks(task.trainer, value)
    return (
        mean + (value - value.detach()) if value.requires_grad else mean
    )  # the value of the mean with the gradient of this rank


def _refuse_split_weights(task: pl.LightningModule, what: str) -> None:
    if task.device_mesh is not None:
        raise ValueError(f"{what} needs whole weights of {type(task).__name__}, but trainer=fsdp shards them; use trainer=ddp")
