"""`Task`, the base class of everything that is trained: a task defines `losses`, the training step is written here once."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from etude.core import gradients, lightning, task_checkpoint
from etude.core.batch import Batch
from etude.core.clipping import clip_players
from etude.core.loss_names import unknown_terms
from etude.core.measuring import Measurable
from etude.core.parameter_groups import parameter_groups
from etude.core.phases import Phase, Phases
from etude.core.protocols import NeedsTask, ObservesBatches
from etude.core.sharding import shard_networks
from etude.core.technique import Composition, Technique

OptimizerFactory = Callable[..., torch.optim.Optimizer]
SchedulerFactory = Callable[..., torch.optim.lr_scheduler.LRScheduler]


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within this context gradients flow through the modules but are not collected in their parameters.

    A GAN computes the generator's adversarial term with the discriminator frozen. No player's loss then reaches the parameters
    of another player, and one backward pass through the sum of all losses gives the same update as alternating steps.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class Task(Measurable):
    """A LightningModule with automatic optimization; a subclass defines `losses`.

    Args:
        optimizer: called with the parameter groups, returns the one optimizer that trains all players.
        scheduler: called with (optimizer, total_steps=...), returns the schedule, which is stepped after each optimizer step;
            None keeps the learning rate constant.
        loss_weights: weight of each loss term by name; 1 for a term that is not named.
        player_lr: learning rate of a player where it differs from the optimizer's.
        seed: of all random draws in training. The draws of a batch depend on (seed, rank, batches trained) alone, so a
            resumed run draws the same numbers as an uninterrupted one.

    A subclass may set these class attributes:

    - `terms`: the names of its loss terms, if they are the same on every batch.
    - `optional_terms`: names of terms that are missing on some batches. A weight for one of them is never an error.
    - `example_axis`: the axis along which every tensor of a batch holds the examples; see `etude.core.batch`.
    - `min_styles`: how many of its data's styles a batch must hold at least; None if it needs all of them.
    - `step_trace_names`: entries of `trace` that are kept, detached, until `after_step`. `step_trace` then holds, for each name,
      one tensor for each batch of the step. The keys of a momentum-contrast queue are passed on this way.

    State of the run:

    - `batches_trained`, `steps_trained`: batches and optimizer steps since the start of the run; resuming continues the count.
    - `accumulating`: True while accumulated gradients wait for their optimizer step.
    - `in_losses_at`: True while `losses_at` runs. Forward hooks should then ignore the pass: it may be on another batch.
    - `phase`, `phases`: the current phase of training, and all phases.

    For techniques:

    - `trace`: intermediate results of `losses` on the current batch, with their graph, under names that the task documents.
    - `lr_factors`: prefix of parameter names -> factor of their learning rates; the longest matching prefix counts.
    - `schedule_steps`: length of the schedule in optimizer steps, None for the whole run. `schedule_options`: its other
      arguments. These three are used by the next `configure_optimizers`.
    - `final_weights`: the weights that `last.ckpt` holds for sampling once the run is over.
    """

    terms: ClassVar[tuple[str, ...]] = ()
    optional_terms: ClassVar[frozenset[str]] = frozenset()
    example_axis: ClassVar[int | None] = None
    min_styles: ClassVar[int | None] = None
    step_trace_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        player_lr: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._optimizer = optimizer
        self._scheduler = scheduler
        self.loss_weights = dict(loss_weights or {})
        self.player_lr = dict(player_lr or {})
        self.seed = seed
        self.batches_trained = 0
        self.steps_trained = 0
        self.accumulating = False
        self.in_losses_at = False
        self.step_trace: dict[str, list[Tensor]] = {}
        self.composition = Composition()
        self.recipe: dict[str, Any] = {}
        self.trace: dict[str, Tensor] = {}
        self.lr_factors: dict[str, float] = {}
        self.schedule_steps: int | None = None
        self.schedule_start_step = 0  # the optimizer step at which the schedule of `schedule_steps` starts
        self.schedule_options: dict[str, Any] = {}
        self.phases = Phases()
        self.final_weights: dict[str, Tensor] = {}
        self.gradient_norms: dict[str, Tensor] = {}  # by player, before clipping; empty where nothing needs them
        self._terms: dict[str, Tensor] = {}
        self._factors: dict[str, float | Tensor] = {}
        self._observe: Callable[[Task, Batch], None] | None = None  # called on each batch, if the optimizer needs it

    # --- what a subclass defines ---

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms by name: differentiable scalars without weights; `player/term` if there are several players.

        It is also called in validation and by `losses_at`. So it must not fill a queue or count anything; `after_step` does that,
        from `step_trace`. It may change buffers that a forward pass updates (BatchNorm), and attributes of the kind
        `gradients.Restorable`, such as an image pool.
        """
        raise TypeError(f"{type(self).__name__} must define losses(batch)")

    @property
    def players(self) -> dict[str, Sequence[nn.Module]]:
        """The modules of each player, by the player's name; players share no parameters."""
        return {"model": [self]}

    def after_step(self) -> None:
        """Runs once after each optimizer step, for example to update a momentum teacher or to fill a queue from `step_trace`.

        Called under `torch.no_grad()` on every rank: after techniques that change weights, before techniques that average them,
        and before the schedule's step, a validation or a checkpoint. With accumulated gradients it is called once for all
        batches of the step. It is also called after a step that was skipped by a guard (`finite`, `stability`) or by the gradient
        scaler of 16-mixed precision, since Lightning and the schedule count that step.
        """

    # --- what a subclass may offer ---

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        """The network's residual blocks, first to last; if there are several equal networks, one network after the other."""
        return ()

    def recompute_trace(self, batch: Batch, trace: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns this task's outputs for the inputs that another task of its class recorded in `trace`, by the same names.

        Distillation compares a student's outputs with its teacher's this way, on training data. {} if a task does not offer it.
        """
        return {}

    @property
    def phase(self) -> Phase:
        """The current phase of training."""
        return self.phases.current

    @property
    def can_add_modules(self) -> bool:
        """Whether a phase may add modules to this task, that is, whether it defines `add_modules`."""
        return type(self).add_modules is not Task.add_modules

    def add_modules(self, **options: Any) -> None:
        """Adds modules, such as outputs for new classes, inside the modules that `players` returns.

        `options` is the option `modules` of a phase. If a parameter is replaced by a larger one, the old values must be its first
        entries in every dimension; the optimizer then keeps its state for them. Called when the phase begins, and again when a
        task is rebuilt from a checkpoint, before its weights are loaded.
        """
        raise ValueError(f"{type(self).__name__} can't add modules in a phase; leave modules={options} out")

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        """Returns the weights with which a new run starts, taken from the checkpoint `saved` of another run.

        path: where the checkpoint was read from, for messages. Raises: ValueError if the weights don't fit this task.
        """
        return dict(saved["state_dict"])

    @classmethod
    def check_data(cls, options: Mapping[str, Any]) -> None:
        """Raises ValueError for options of the data (`data.*`) that this task can't learn from; called before they are read."""

    @classmethod
    def constructor_arguments_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor arguments that came from the data, from what `on_save_checkpoint` stored under "etude"."""
        return {}

    # --- what is the same for all tasks ---

    def setup(self, stage: str) -> None:
        """Collects the techniques among the trainer's callbacks; their order in that list does not matter."""
        callbacks = lightning.callbacks_of(self.trainer)
        self.composition = Composition(c for c in callbacks if isinstance(c, Technique))
        rest = [c for c in callbacks if not isinstance(c, Technique)]
        lightning.set_callbacks(self.trainer, [*self.composition.techniques, *rest])
        self.create_validation_means()
        self.steps_trained, self.accumulating = self.trainer.global_step, False  # a resumed run's count is loaded after this

    def configure_model(self) -> None:
        """With trainer=fsdp, shards every block and every network over the devices; otherwise does nothing."""
        if self.device_mesh is not None:
            shard_networks(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # A seed for each rank and batch: GAN noise differs between ranks, and resuming needs no saved random state.
        torch.manual_seed(((self.seed * 1_000_003 + self.batches_trained) * 65_536 + self.global_rank) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trace, self.accumulating = {}, True
        batch = self.composition.transform_batch(self, batch)
        losses = self.composition.extend_losses(self, batch, self.composition.make_losses(self, batch))
        if self._observe is not None:
            self._observe(self, batch)
        unknown = self.loss_weights.keys() - losses.keys() - self.optional_terms
        if wrong := unknown_terms(self, unknown, losses):
            raise ValueError(f"loss_weights names {wrong}, but the terms are {sorted(losses)}; rename or drop it")
        self._factors = self.composition.factors(self, losses)
        loss = self.composition.weigh(self, losses)
        if self.composition.backward_owner is not None:
            self._terms = self.weighted(losses)
        self.batches_trained += 1
        for name in self.step_trace_names:
            self.step_trace.setdefault(name, []).append(self.trace[name].detach())
        self.trace = {}
        self.log_terms(loss, losses)
        return loss

    def losses_at(
        self, batch: Batch, *, parameters: Mapping[str, Tensor] | None = None, keep_state: bool = True, reduce: bool = False
    ) -> dict[str, Tensor]:
        """Returns the losses on any batch without changing the state of the run.

        The trace, buffers, image pools, random states, logs, gradients and counters stay as they were. The forward pass draws
        the random numbers that would come next, and uses the run's precision, also where autocast is off. If gradients are
        enabled, the result has a graph to the weights (or to `parameters`). `trainer.validate` runs in inference mode; enable
        gradients there with `etude.core.gradients.gradients_enabled`.

        Args:
            parameters: tensors that replace the parameters of these names in this forward pass.
            keep_state: False lets the forward pass change all state, as a training step does; for `Power.LOSSES`.
            reduce: return means over all ranks; their gradients are those of this rank.

        Raises: ValueError if `parameters` has a name that the task does not have, or is given under trainer=fsdp.
        """
        return gradients.losses_at(self, batch, parameters=parameters, keep_state=keep_state, reduce=reduce)

    def gradient_of(
        self, batch: Batch, *, parameters: Mapping[str, Tensor] | None = None, create_graph: bool = False, reduce: bool = False
    ) -> dict[str, Tensor]:
        """Returns the gradient of the weighted sum of the losses on any batch, by parameter name; see `losses_at`.

        The weights are `loss_weights`; terms and factors of techniques are not included. It also works under `torch.no_grad()`
        and in inference mode, and does not change `.grad`. A parameter that the losses do not depend on is left out.

        Args:
            parameters: differentiate with respect to these, which replace the parameters of these names; None for all
                parameters that are trained.
            create_graph: the result can be differentiated again, as an inner loop needs. reduce: return means over all ranks.

        Raises: ValueError as `losses_at`; always under trainer=fsdp.
        """
        return gradients.gradient_of(self, batch, parameters=parameters, create_graph=create_graph, reduce=reduce)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Logs a value as Lightning does; does nothing while `losses_at` runs."""
        if not self.in_losses_at:
            super().log(*args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        owner = self.composition.backward_owner
        if owner is None:
            super().backward(loss, *args, **kwargs)
            return
        scaler = lightning.scaler_of(self.trainer)
        scale = (scaler.get_scale() if scaler is not None else 1.0) / self.trainer.accumulate_grad_batches
        owner.backward(self, {name: term * scale for name, term in self._terms.items()} if scale != 1 else self._terms)
        self._terms = {}

    def weights_of(self, losses: Iterable[str]) -> dict[str, float | Tensor]:
        """Returns the weight of each term: its `loss_weights` entry (1 if there is none) times the factors of techniques.

        A term that corrects another one (`Technique.corrections`) is also multiplied by the weight of that term.
        """
        return {name: self._weight(name) for name in sorted(losses)}

    def _weight(self, name: str) -> float | Tensor:
        own, base = self.loss_weights.get(name, 1.0) * self._factors.get(name, 1.0), self.composition.corrections.get(name)
        return own if base is None else own * self._weight(base)

    def weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns each term times its weight, sorted by name. Raises: ValueError if there are no terms."""
        if not losses:
            raise ValueError(f"{type(self).__name__}.losses returned no terms; it must return at least one")
        return {name: weight * losses[name] for name, weight in self.weights_of(losses).items()}

    def weighted_sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Returns sum_i w_i * loss_i with the weights of `weights_of`. The order of summation is that of the sorted names."""
        return torch.stack(list(self.weighted(losses).values())).sum()

    def check_metric(self, name: str, option: str, mode: str, techniques: Iterable[Technique] | None = None) -> None:
        """Checks that the metric `name` is logged and that `mode` ("min" or "max") fits it.

        option: the option that names the metric, such as "stages.monitor", for the message. techniques: those of the run, if the
        task has no trainer yet.

        Raises: ValueError if nothing logs the metric, or if higher values of it are better and the mode is "min".
        """
        chosen = list(self.composition.techniques if techniques is None else techniques)
        maximized = {f"val/{measure.name}" for measure in self.measures() if measure.higher_is_better}
        if mode == "min" and name in maximized.union(*(technique.maximized_metrics for technique in chosen)):
            raise ValueError(f"{option} is {name!r}; higher values are better, but its mode is min; set the mode to max")
        known = {"train/loss", *self.logged_metrics}.union(*(technique.logged_metrics for technique in chosen))
        if name not in known and not name.startswith("train/"):
            raise ValueError(f"{option} is {name!r}, which nothing logs; there are {', '.join(sorted(known))}")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the parameter groups for the optimizer; see `etude.core.parameter_groups`."""
        names = {id(p): name for name, p in self.named_parameters()}
        return parameter_groups(self.players, names, player_lr=self.player_lr, lr_factors=self.lr_factors)

    def use_optimizer(
        self,
        optimizer: OptimizerFactory,
        *,
        player_lr: Mapping[str, float] | None = None,
        schedule_steps: int | None = None,
        start_step: int = 0,
    ) -> None:
        """Replaces the optimizer; the change takes effect at the next `configure_optimizers`.

        Its schedule starts at optimizer step `start_step` and lasts `schedule_steps`. If a schedule with a later start is set
        already, that one stays.
        """
        self._optimizer, self.player_lr = optimizer, dict(player_lr or {})
        if start_step >= self.schedule_start_step:
            self.schedule_steps, self.schedule_start_step = schedule_steps, start_step

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Returns a new optimizer for all parameters with `requires_grad`."""
        optimizer = self._optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_factor", 1.0)
        return optimizer

    @property
    def schedule_arguments(self) -> frozenset[str]:
        """The names of the schedule's arguments; empty if there is no schedule."""
        return frozenset(inspect.signature(self._scheduler).parameters) if self._scheduler is not None else frozenset()

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer()
        if isinstance(optimizer, NeedsTask):
            optimizer.attach(self)
        self._observe = optimizer.observe if isinstance(optimizer, ObservesBatches) else None
        if self._scheduler is None:
            return optimizer
        total = self.trainer.estimated_stepping_batches if self.schedule_steps is None else self.schedule_steps
        if total == float("inf"):
            raise ValueError("a schedule needs the number of steps: set trainer.max_steps or trainer.max_epochs")
        scheduler = self._scheduler(optimizer, total_steps=int(total), **self.schedule_options)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the gradient of each player separately, so that a large gradient of one player does not shrink another's."""
        self.composition.transform_gradients(self, lambda: self._clip(gradient_clip_val, gradient_clip_algorithm))

    def _clip(self, value: float | None, algorithm: str | None) -> None:
        self.gradient_norms = clip_players(self.players, value, algorithm, guarded=self.composition.guarded)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Makes the optimizer step, then calls `after_step` of the techniques and of this task."""
        super().optimizer_step(*args, **kwargs)
        if lightning.is_accumulating(self.trainer):
            return
        self.steps_trained, self.accumulating = self.steps_trained + 1, False
        with torch.no_grad():
            self.composition.after_step(self)
        self.step_trace = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        task_checkpoint.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        task_checkpoint.load(self, checkpoint)
