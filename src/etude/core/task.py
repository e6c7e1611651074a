"""The one training step: every task writes `losses`, everything else happens here."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from etude.core import gradients, lightning
from etude.core.averaging import go_on_without
from etude.core.batch import Batch
from etude.core.clipping import clip_players
from etude.core.measuring import Measurable
from etude.core.parameter_groups import parameter_groups
from etude.core.phases import Phase, Phases
from etude.core.protocols import Attached, Observing
from etude.core.technique import Composition, Technique

OptimizerFactory = Callable[..., torch.optim.Optimizer]
SchedulerFactory = Callable[..., torch.optim.lr_scheduler.LRScheduler]


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Lets gradients pass through the modules but not into their parameters.

    A generator's adversarial term runs the discriminator inside this, so that no player's loss reaches another's
    parameters and one backward through the sum of all losses equals alternating steps.
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
    """A LightningModule under automatic optimisation whose author writes `losses`.

    Args:
        optimizer: called with parameter groups, gives the one optimizer of all players.
        scheduler: called with (optimizer, total_steps=...), gives a schedule stepped once a batch; None keeps the
            learning rate.
        loss_weights: factor of each named term, 1 where a term is not named.
        player_lr: learning rate of a player where it differs from the optimizer's.
        seed: of every random draw in training; the draws of a batch depend on (seed, rank, batches trained) alone, so
            that a resumed run draws what the uninterrupted one would have drawn.

    A task whose terms come and go declares them as `lazy_terms`: a weight of one that is not there is no mistake. What
    validation measures stands in `measures`; a task that always has the same terms may name them in `terms`.
    `example_axis` is the axis that holds the examples in every entry of its batches; see `etude.core.batch`.
    `kept_for_step` names what of the `trace` is kept until `after_step`, detached, in `step_trace`: for each name the tensors of
    the step's batches. Keys of a queue come this way.

    `batches_trained` and `steps_trained` count batches and optimizer steps of the whole run, also over a resume; `accumulating`
    says whether gradients of batches seen wait for their optimizer step; `aside`, whether `losses_at` asks for losses that are
    not this batch's, so that who listens to forward passes should not.

    For techniques: `trace` holds what `losses` computed on the batch at hand, with its graph, by the names that the task
    documents; `lr_factors` (beginning of a parameter's name -> factor of its learning rate, the longest wins) and
    `schedule_steps` and `schedule_options` (length of the schedule, None for all steps; its other arguments) say how the next
    `configure_optimizers` builds; `final_weights` are what `last.ckpt` holds for sampling once the run is over; `phase` is the
    section of training that is under way, `phases` all of them. A task that can train on batches with some of its data's styles
    says in `least_styles` how many it needs.
    """

    terms: ClassVar[tuple[str, ...]] = ()
    lazy_terms: ClassVar[frozenset[str]] = frozenset()
    example_axis: ClassVar[int | None] = None
    least_styles: ClassVar[int | None] = None  # None: it needs them all
    kept_for_step: ClassVar[tuple[str, ...]] = ()

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
        self.aside = False
        self.step_trace: dict[str, list[Tensor]] = {}
        self.composition = Composition()
        self.recipe: dict[str, Any] = {}
        self.trace: dict[str, Tensor] = {}
        self.lr_factors: dict[str, float] = {}
        self.schedule_steps: int | None = None
        self.schedule_since = 0  # the optimizer step at which `schedule_steps` was set
        self.schedule_options: dict[str, Any] = {}
        self.phases = Phases()
        self.final_weights: dict[str, Tensor] = {}
        self.gradient_norms: dict[str, Tensor] = {}  # of each player, before clipping, where it is clipped or guarded
        self._terms: dict[str, Tensor] = {}
        self._factors: dict[str, float | Tensor] = {}
        self._observe: Callable[[Task, Batch], None] | None = None  # of an optimizer that wants more than gradients

    # What a task's author writes.

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the named, unweighted, differentiable scalar terms; `player/term` where there are several players.

        Also called in validation and by `losses_at`, so it fills no queue and counts nothing: `after_step` does, from
        `step_trace`. Buffers that a forward pass writes (BatchNorm) may change, and attributes that are a `gradients.Memory`,
        such as an image pool.
        """
        raise TypeError(f"{type(self).__name__} must define losses(batch)")

    @property
    def players(self) -> dict[str, Sequence[nn.Module]]:
        """Name of each player and its modules; players share no parameters."""
        return {"model": [self]}

    def after_step(self) -> None:
        """Acts once after each optimizer step: a teacher follows the weights, a queue takes what the step's batches left.

        Called under `torch.no_grad()` on every rank, after techniques that change weights and before those that average them,
        before the schedule's step, a validation or a checkpoint. With accumulated gradients once for all batches of the step.
        Also after a step that changed nothing, since Lightning and the schedule count it: one that a guard (`finite`,
        `stability`) or the scaler of half precision left out.
        """

    # What techniques may ask for, where a task offers it.

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        """The network's residual blocks, first to last; of several equal networks, one network's after the other's."""
        return ()

    def retrace(self, batch: Batch, trace: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This task's own outputs for the very inputs that another task of its kind recorded in `trace`, by the same names;
        {} where a task offers none."""
        return {}

    @property
    def phase(self) -> Phase:
        """The section of training that is under way."""
        return self.phases.current

    @property
    def takes_modules(self) -> bool:
        """Whether a phase may have this task add modules."""
        return type(self).add_modules is not Task.add_modules

    def add_modules(self, **options: Any) -> None:
        """Adds what a phase names as `modules`, such as outputs for new classes, to modules that `players` names.

        Weights of a module that is replaced by a larger one must be the beginning of the new ones in every dimension: the
        optimizer then goes on with what it knew of them. Called when the phase begins, and again for a task that is rebuilt from
        a checkpoint, before its weights are loaded.
        """
        raise ValueError(f"{type(self).__name__} has no modules to add in a phase; leave modules={options} out")

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        """Returns the weights of another run's checkpoint `saved`, read from `path`, as a new run of this task begins with them.

        Raises: ValueError where they don't suit this run.
        """
        return dict(saved["state_dict"])

    @classmethod
    def parts_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the data gave to the constructor, from what `on_save_checkpoint` put under "etude"."""
        return {}

    # What is written once.

    def setup(self, stage: str) -> None:
        """Collects the trainer's techniques; their order in its callback list is of no account."""
        callbacks = lightning.callbacks_of(self.trainer)
        self.composition = Composition(c for c in callbacks if isinstance(c, Technique))
        rest = [c for c in callbacks if not isinstance(c, Technique)]
        lightning.set_callbacks(self.trainer, [*self.composition.techniques, *rest])
        self.prepare_means()
        self.steps_trained, self.accumulating = self.trainer.global_step, False  # a resumed run's count is loaded after this

    def configure_model(self) -> None:
        """Under a strategy with a device mesh (trainer=fsdp), splits every block and every player's network."""
        if self.device_mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        networks = [child for child in self.children() if any(True for _ in child.parameters())]
        for network in networks:
            for part in network.modules():
                if isinstance(part, nn.ModuleList):
                    for block in part:
                        fully_shard(block, mesh=mesh)
            fully_shard(network, mesh=mesh)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # One stream for each rank and batch: GAN noise differs between ranks, and nothing need be saved to resume.
        torch.manual_seed(((self.seed * 1_000_003 + self.batches_trained) * 65_536 + self.global_rank) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trace, self.accumulating = {}, True
        batch = self.composition.transform_batch(self, batch)
        losses = self.composition.extend_losses(self, batch, self.composition.make_losses(self, batch))
        if self._observe is not None:
            self._observe(self, batch)
        unknown = self.loss_weights.keys() - losses.keys() - self.lazy_terms
        if wrong := self.nowhere(unknown, losses):
            raise ValueError(f"loss_weights names {wrong}, but the terms are {sorted(losses)}; rename or drop it")
        self._factors = self.composition.factors(self, losses)
        loss = self.composition.weigh(self, losses)
        if self.composition.backward_owner is not None:
            self._terms = self.weighted(losses)
        self.batches_trained += 1
        for name in self.kept_for_step:
            self.step_trace.setdefault(name, []).append(self.trace[name].detach())
        self.trace = {}
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        return loss

    def losses_at(
        self, batch: Batch, *, parameters: Mapping[str, Tensor] | None = None, undisturbed: bool = True, reduce: bool = False
    ) -> dict[str, Tensor]:
        """Returns the losses on any batch, with `parameters` in place of the weights of these names, and disturbs nothing.

        The trace, buffers, image pools, random states, logs, gradients and counters stay as they were; draws are those that would
        come next. The precision is the run's, also where autocast is off. A graph is built where gradients are enabled, to the
        own weights or to `parameters`; in inference mode, in which `trainer.validate` runs, enable them with
        `etude.core.gradients.gradients_enabled`.

        undisturbed: False for the pass of a training step itself (`Power.LOSSES`), which leaves its trace and all else behind.
        reduce: means over all ranks; their gradients are those of the own rank.

        Raises:
            ValueError: a name in `parameters` that the task does not have, or `parameters` under trainer=fsdp.
        """
        return gradients.losses_at(self, batch, parameters=parameters, undisturbed=undisturbed, reduce=reduce)

    def gradient_of(
        self, batch: Batch, *, parameters: Mapping[str, Tensor] | None = None, create_graph: bool = False, reduce: bool = False
    ) -> dict[str, Tensor]:
        """Returns the gradient, by parameter name, of the losses on any batch, summed with `loss_weights`; see `losses_at`.

        Of `parameters` alone where given, else of all weights that are trained; those that the losses do not reach are left out.
        Without the terms and factors of techniques. Works anywhere, also under `torch.no_grad()` and in inference mode; `.grad`
        stays as it is. create_graph: for inner loops that are differentiated. reduce: means over all ranks.

        Raises:
            ValueError: as `losses_at`; always under trainer=fsdp.
        """
        return gradients.gradient_of(self, batch, parameters=parameters, create_graph=create_graph, reduce=reduce)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Logs a value, but for what `losses_at` computes."""
        if not self.aside:
            super().log(*args, **kwargs)

    def nowhere(self, names: Iterable[str], losses: Iterable[str]) -> list[str]:
        """Those of `names`, none of them in `losses`, that can't be terms: of a player that plays on this batch, or of none.

        A player that rests on a batch leaves its terms out: naming one of them is then no mistake.
        """
        played, players = {name.rpartition("/")[0].partition("/")[0] for name in losses}, self.players.keys()
        owners = {name: name.partition("/")[0] if "/" in name else "" for name in names}
        started = self.batches_trained > 0  # a technique's term without a player may come later
        return sorted(
            n for n, owner in owners.items() if owner in played or (owner not in players and not (started and not owner))
        )

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
        """Returns the weight of each term: `loss_weights`, 1 where a term is not named, times the techniques' factors; times the
        weight of the term that it corrects, where it corrects one."""
        return {name: self._weight(name) for name in sorted(losses)}

    def _weight(self, name: str) -> float | Tensor:
        own, base = self.loss_weights.get(name, 1.0) * self._factors.get(name, 1.0), self.composition.corrections.get(name)
        return own if base is None else own * self._weight(base)

    def weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns each term times its weight, in the order of the names."""
        if not losses:
            raise ValueError(f"{type(self).__name__}.losses returned no terms; it must return at least one")
        return {name: weight * losses[name] for name, weight in self.weights_of(losses).items()}

    def weighted_sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Returns sum_i w_i * loss_i with the weights of `weights_of`, summed in the order of the names."""
        return torch.stack(list(self.weighted(losses).values())).sum()

    def check_metric(self, name: str, who: str, mode: str, techniques: Iterable[Technique] | None = None) -> None:
        """Raises: ValueError where nothing logs the metric `name` that `who` (such as "stages.monitor") wants to watch, or where
        more of it is better and `mode` is min. techniques: those of the run, where the task has no trainer yet."""
        chosen = list(self.composition.techniques if techniques is None else techniques)
        better = {f"val/{measure.name}" for measure in self.measures() if measure.more_is_better}
        if mode == "min" and name in better.union(*(technique.more_is_better for technique in chosen)):
            raise ValueError(f"{who} is {name!r}, of which more is better, and its mode is min; set that to max")
        known = {"train/loss", *self.logs}.union(*(technique.logs for technique in chosen))
        if name not in known and not name.startswith("train/"):
            raise ValueError(f"{who} is {name!r}, which nothing logs; there are {', '.join(sorted(known))}")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One or two groups a player and factor of the learning rate: matrices that decay; norms, biases and embeddings that
        do not."""
        names = {id(p): name for name, p in self.named_parameters()}
        return parameter_groups(self.players, names, player_lr=self.player_lr, lr_factors=self.lr_factors)

    def use_optimizer(
        self,
        optimizer: OptimizerFactory,
        *,
        player_lr: Mapping[str, float] | None = None,
        schedule_steps: int | None = None,
        since: int = 0,
    ) -> None:
        """Takes another optimizer from the next `configure_optimizers` on, its schedule over `schedule_steps` from optimizer step
        `since` on, unless one that began later is set already."""
        self._optimizer, self.player_lr = optimizer, dict(player_lr or {})
        if since >= self.schedule_since:
            self.schedule_steps, self.schedule_since = schedule_steps, since

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Returns a new optimizer of the parameters that are trained."""
        optimizer = self._optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_factor", 1.0)
        return optimizer

    @property
    def schedule_arguments(self) -> frozenset[str]:
        """Names of the schedule's arguments; none where there is no schedule."""
        return frozenset(inspect.signature(self._scheduler).parameters) if self._scheduler is not None else frozenset()

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer()
        if isinstance(optimizer, Attached):
            optimizer.attach(self)
        self._observe = optimizer.observe if isinstance(optimizer, Observing) else None
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
        """Clips each player by itself, so that one player's large gradient does not slow another."""
        self.composition.transform_gradients(self, lambda: self._clip(gradient_clip_val, gradient_clip_algorithm))

    def _clip(self, value: float | None, algorithm: str | None) -> None:
        self.gradient_norms = clip_players(self.players, value, algorithm, guarded=self.composition.guarded)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Makes the step and calls what follows it; Lightning asks for it once per optimizer step."""
        super().optimizer_step(*args, **kwargs)
        if lightning.is_accumulating(self.trainer):
            return
        self.steps_trained, self.accumulating = self.steps_trained + 1, False
        with torch.no_grad():
            self.composition.after_step(self)
        self.step_trace = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        counts = {"batches_trained": self.batches_trained, "steps_trained": self.steps_trained}
        checkpoint["etude"] = {**counts, "recipe": self.recipe, "phases": self.phases.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["etude"]
        self.batches_trained = saved["batches_trained"]
        # checkpoints of before the count was saved hold Lightning's
        self.steps_trained = saved["steps_trained"] if "steps_trained" in saved else checkpoint["global_step"]
        self.phases.load(self, checkpoint)
        if "trained_weights" in checkpoint:  # of a run that was over
            checkpoint["state_dict"] = checkpoint["trained_weights"]
        if lightning.trainer_of(self) is not None and self.trainer.state.fn == "fit":
            go_on_without(self, checkpoint, {technique.state_key for technique in self.composition.techniques})
