"""Technique distillation: trains a model to imitate a trained teacher, by loss terms and by samples of the teacher."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core.batch import Batch, own_inputs
from etude.core.protocols import HasAttentionMaps, HasMelContract, PredictsTokens, Styled, Tokenized
from etude.core.same_file import SameFile
from etude.core.task import Task
from etude.core.technique import BatchSlot, GradientSlot, Technique
from etude.losses.distillation import adaptive_temperature, attention_loss, projected_distance, soft_target_loss
from etude.losses.feature_matching import feature_matching
from etude.tokens.classes import CLASSES, token_classes
from etude.tokens.rows import packed_rows
from etude.wording import counted

TEACHER = "technique.distillation.teacher"
SCHEDULES = ("constant", "annealed", "adaptive")


class Distillation(Technique):
    """Adds loss terms that compare the model (the student) with a frozen teacher. A term with weight 0 is not computed.

    For tasks with logits:

    - `distill_soft`: T^2 KL(teacher || student), the mean over counted tokens (Hinton et al. 2015). The task's own terms are
      multiplied by `hard`.
    - `distill_features`: 1 - cosine similarity of the blocks' outputs, after projections that this technique trains (Romero et
      al. 2015).
    - `distill_attention`: KL of the attention of the last blocks, the mean over heads (Jiao et al. 2020).
    - a share of rows is replaced by samples of the teacher (Kim and Rush 2016).

    For GANs, as terms of the player `generator`:

    - `distill_output`: |student - teacher| for the same inputs.
    - `distill_features`: the distance of both outputs in the layers of the teacher's discriminator (Wang et al. 2018, eq. 4).

    The teacher is no submodule of the task: optimizer, averages and checkpoints do not contain it. The checkpoint holds its
    sha256, and a resumed run refuses a different teacher. Both models get the batch after all techniques have changed it, but
    each embeds its tokens itself.

    When to use: to train a small model where a large one is too slow. Suggested: a student of a quarter of the teacher's size,
    soft 1, hard 1, temperature 1; at higher temperatures so small a student spends its capacity on unlikely tokens.

    Args:
        teacher: a checkpoint, the folder of a run, or last.
        soft, features, attention, output: weights, 0 or more. hard: factor of a language model's own terms, 0 or more.
        temperature: T, at least 1. temperature_schedule: constant; annealed, linearly to 1 at the end of the run; adaptive,
            between 1 and T: higher where the teacher is more certain.
        class_weights, class_temperatures: factors of the weight and of T, by the class of the target token (control, pitch,
            time, duration, velocity, other).
        sequence_share: share of rows that are replaced by samples of the teacher, in [0, 1]. num_sequences: how many are
            sampled, once, at the start. sequence_tokens: most tokens of each.
        projection_lr: learning rate of the projections.
        find: returns the path for (teacher, name of the option). load: returns (model, configuration) for a path.
            `etude.run` provides both.
        seed: of the samples and of the rows that they replace.

    Raises:
        ValueError: in setup, there is no teacher, it has another task or vocabulary, or the task does not support a term.
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.SELECT
    gradient_slot: ClassVar[GradientSlot] = GradientSlot.PROJECT

    def __init__(
        self,
        *,
        teacher: str | None = None,
        soft: float = 1.0,
        hard: float = 1.0,
        features: float = 0.0,
        attention: float = 0.0,
        output: float = 1.0,
        temperature: float = 1.0,
        temperature_schedule: str = "constant",
        class_weights: Mapping[str, float] | None = None,
        class_temperatures: Mapping[str, float] | None = None,
        sequence_share: float = 0.0,
        num_sequences: int = 32,
        sequence_tokens: int = 1024,
        projection_lr: float = 0.001,
        find: Callable[[str, str], Path] | None = None,
        load: Callable[[Path], tuple[Any, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        weights = {"soft": soft, "hard": hard, "features": features, "attention": attention, "output": output}
        for name, value in weights.items():
            if value < 0:
                raise ValueError(f"technique.distillation.{name} is {value}, must be 0 or more")
        if temperature < 1 or temperature_schedule not in SCHEDULES:
            raise ValueError(
                f"technique.distillation.temperature is {temperature}, {temperature_schedule}; it must be at least 1, and "
                f"temperature_schedule one of {', '.join(SCHEDULES)}"
            )
        if temperature_schedule != "constant" and temperature == 1:
            raise ValueError(
                f"technique.distillation.temperature_schedule={temperature_schedule} changes nothing at temperature 1; give "
                "technique.distillation.temperature=2 or more"
            )
        if not 0 <= sequence_share <= 1 or num_sequences < 1:
            raise ValueError(
                f"technique.distillation.sequence_share is {sequence_share}, must be in [0, 1], num_sequences at least 1"
            )
        for name, table in (("class_weights", class_weights), ("class_temperatures", class_temperatures)):
            if unknown := set(table or {}) - set(CLASSES):
                raise ValueError(f"technique.distillation.{name} names {sorted(unknown)[0]!r}; classes are {', '.join(CLASSES)}")
        if min((class_weights or {}).values(), default=0) < 0 or min((class_temperatures or {}).values(), default=1) <= 0:
            raise ValueError(
                f"technique.distillation.class_weights is {dict(class_weights or {})}, must be at least 0 each, and "
                f"class_temperatures {dict(class_temperatures or {})}, above 0"
            )
        self.teacher_name, self.weights, self.temperature, self.schedule = teacher, weights, temperature, temperature_schedule
        self.class_weights, self.class_temperatures = dict(class_weights or {}), dict(class_temperatures or {})
        self.sequence_share, self.num_sequences, self.sequence_tokens = sequence_share, num_sequences, sequence_tokens
        self.projection_lr = projection_lr
        self._find, self._load = find, load
        self._teacher: list[Any] = []  # in a list, so that it does not become a submodule
        self._file = SameFile("technique distillation: the run was distilled from", "the teacher")
        self._outputs: dict[str, dict[int, Any]] = {"student": {}, "teacher": {}}
        self._projections: list[Tensor] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored: dict[str, Any] = {}
        self.sequences: list[Tensor] = []
        self._total = 1
        self._own: frozenset[str] = frozenset()  # the task's terms

    @property
    def teacher(self) -> Any:
        """The teacher, in evaluation mode and without gradients."""
        return self._teacher[0]

    def paths(self) -> dict[str, Path]:
        return {} if self.teacher_name is None or self._find is None else {"teacher": self._find(self.teacher_name, TEACHER)}

    # --- setup ---

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, Task)
        kind = type(pl_module).__name__
        if self.teacher_name is None or self._load is None:
            raise ValueError(
                f"technique distillation needs a teacher for this {kind}; give technique.distillation.teacher=CHECKPOINT, a "
                "run's folder, or last"
            )
        if type(pl_module).recompute_trace is Task.recompute_trace:
            raise ValueError(
                f"technique distillation compares outputs, which {kind} does not provide; remove it from technique=[...]"
            )
        path = self._find(self.teacher_name, TEACHER) if self._find is not None else Path(self.teacher_name)
        self._file.found(path)
        teacher = self._load(Path(path))[0]
        self._check_teacher(teacher, pl_module, path)
        teacher.requires_grad_(False)
        self._teacher = [teacher.eval()]
        if trainer.max_steps < 1 and self.schedule == "annealed":
            raise ValueError("technique distillation needs the length of the run to anneal the temperature; set max_steps")
        self._total = max(1, trainer.max_steps * trainer.accumulate_grad_batches)
        self._is_language_model = isinstance(pl_module, PredictsTokens)
        useful = ("soft", "features", "attention") if self._is_language_model else ("output", "features")
        if not any(self.weights[name] for name in useful) and not self.sequence_share:
            raise ValueError(
                f"technique distillation: {', '.join(useful)} are all 0, so this {kind} would learn nothing from its teacher; "
                "set one above 0"
            )
        if self._is_language_model:
            tokenizer: Any = pl_module.tokenizer
            classes = torch.from_numpy(token_classes(tokenizer).kind)
            self._class_weight_v = torch.tensor([self.class_weights.get(name, 1.0) for name in CLASSES])[classes]
            self._class_temperature_v = torch.tensor([self.class_temperatures.get(name, 1.0) for name in CLASSES])[classes]
        elif self.sequence_share or self.weights["attention"]:
            raise ValueError(
                f"technique distillation: {kind} has no sequences and no attention; set sequence_share and attention to 0"
            )

    def _check_teacher(self, teacher: Any, task: Task, path: Path) -> None:
        if type(teacher) is not type(task):
            raise ValueError(
                f"technique distillation: the teacher {path} is a {type(teacher).__name__}, the student a {type(task).__name__}; "
                "give a teacher of the same task"
            )
        mine, theirs = (cast(Any, each).tokenizer if isinstance(each, Tokenized) else None for each in (task, teacher))
        if mine is not None and theirs is not None and mine.fingerprint != theirs.fingerprint:
            raise ValueError(
                f"technique distillation: the teacher {path} has another vocabulary ({len(theirs)} tokens, fingerprint "
                f"{theirs.fingerprint[:12]}) than this LanguageModel ({len(mine)}, {mine.fingerprint[:12]}); give both the same "
                "data= and tokenizer="
            )
        for name, kind in (("contract", HasMelContract), ("styles", Styled)):
            if not isinstance(task, kind):
                continue
            one, other = getattr(task, name), getattr(teacher, name)  # both are of the same class
            if one != other:
                raise ValueError(
                    f"technique distillation: the teacher {path} has {name} {other}, this {type(task).__name__} has {one}; "
                    "train both on the same data"
                )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        self.teacher.to(pl_module.device)
        if self.sequence_share and not self.sequences:
            print(f"distillation: drawing {counted(self.num_sequences, 'piece')} from the teacher")
            tokens, tokenizer = self.sequence_tokens, cast(Any, pl_module.tokenizer)
            scores = self.teacher.sample(num_samples=self.num_sequences, max_new_tokens=tokens, seed=self.seed)
            self.sequences = [torch.tensor(tokenizer.compress(tokenizer.encode(score)), dtype=torch.int64) for score in scores]
        if (self.weights["features"] and self._is_language_model) or self.weights["attention"]:
            self._register_hooks(pl_module)

    @property
    def acts_on_layers(self) -> bool:
        return bool(self.weights["features"] or self.weights["attention"])

    def _register_hooks(self, task: Task) -> None:
        """Registers forward hooks on the student's blocks and on as many of the teacher's, evenly spaced."""
        mine, theirs = task.residual_blocks, self.teacher.residual_blocks
        if not mine or not theirs:
            raise ValueError(
                f"technique distillation: {type(task).__name__} has no residual blocks; set features and attention to 0"
            )
        self._pairs = [(i, round((i + 1) * len(theirs) / len(mine)) - 1) for i in range(len(mine))]
        for side, blocks, numbers in (("student", mine, 0), ("teacher", theirs, 1)):
            for pair in self._pairs:
                self._hook(task, side, pair[0], blocks[pair[numbers]])
        if self.weights["features"]:
            widths = [next(p.shape[-1] for p in blocks[0].parameters() if p.ndim == 2) for blocks in (mine, theirs)]
            generator = self.generator(0)
            for _ in self._pairs:
                start = torch.randn(*widths, generator=generator) / widths[0] ** 0.5
                self._projections.append(start.to(task.device).requires_grad_())
            self._optimizer = torch.optim.Adam(self._projections, lr=self.projection_lr)
            if self._restored:
                with torch.no_grad():
                    for projection, saved in zip(self._projections, self._restored["projections"], strict=True):
                        projection.copy_(saved)
                self._optimizer.load_state_dict(self._restored["optimizer"])

    def _hook(self, task: Task, side: str, number: int, block: nn.Module) -> None:
        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if side == "teacher" or (module.training and not task.in_losses_at):
                self._outputs[side][number] = output

        def keep_attention(module: nn.Module, args: Any, kwargs: Any) -> None:
            if side == "teacher" or (module.training and not task.in_losses_at):
                self._outputs[side][-1] = module.maps(*args, **kwargs)  # type: ignore[operator]

        block.register_forward_hook(keep, with_kwargs=True)
        attention = dict(block.named_children()).get("attention")
        if self.weights["attention"] and number == len(self._pairs) - 1 and isinstance(attention, HasAttentionMaps):
            attention.register_forward_pre_hook(keep_attention, with_kwargs=True)

    # --- training ---

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        if not self.sequence_share or not self.sequences:
            return batch
        generator = self.generator(task.batches_trained)
        rows = torch.rand(len(batch["tokens"]), generator=generator) < self.sequence_share
        if not rows.any():
            return batch
        order = torch.randperm(len(self.sequences), generator=generator).tolist()
        tokenizer: Any = task.tokenizer
        pieces, length = [self.sequences[i] for i in order], batch["tokens"].shape[1]
        made = packed_rows(tokenizer, pieces, rows=int(rows.sum()), length=length)
        mixed = dict(batch)
        for name, values in made.items():
            if name in batch:
                mixed[name] = batch[name].clone()
                mixed[name][rows] = values.to(batch[name])
        return mixed

    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        prefix = "distill_" if self._is_language_model else "generator/distill_"
        found: dict[str, float | Tensor] = {prefix + name: weight for name, weight in self.weights.items()}
        if self._is_language_model:
            found |= dict.fromkeys(self._own, self.weights["hard"])
        return {name: weight for name, weight in found.items() if name in losses and weight != 1}

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._own = frozenset(losses)
        with torch.no_grad(), _random_state_restored():
            taught = self.teacher.recompute_trace(own_inputs(batch), task.trace)
        found = self._language_terms(task, batch, taught) if self._is_language_model else self._gan_terms(task, taught)
        for side in self._outputs.values():
            side.clear()
        return found

    def _language_terms(self, task: Task, batch: Batch, taught: Mapping[str, Tensor]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        counted = batch["targets"] != -100
        if self.weights["soft"]:
            targets_n = batch["targets"][counted]
            student_nv, teacher_nv = task.trace["logits"][counted], taught["logits"][counted]
            temperature_n = self._temperatures(teacher_nv, task) * self._class_temperature_v.to(task.device)[targets_n]
            weight_n = self._class_weight_v.to(task.device)[targets_n]
            soft_n = soft_target_loss(student_nv, teacher_nv, temperature_n)
            if "token_weight" in task.trace:  # mixtures: the teacher tells the own next token, which counts by its share
                soft_n = soft_n * task.trace["token_weight"][counted] * counted.sum()
            terms["distill_soft"] = (weight_n * soft_n).sum() / weight_n.sum().clamp(min=1e-6)
        student, teacher = self._outputs["student"], self._outputs["teacher"]
        if self.weights["features"]:
            pairs = [(i, projection) for i, projection in enumerate(self._projections) if i in student]  # a block may be inactive
            distances = [projected_distance(student[i], teacher[i], projection) for i, projection in pairs]
            terms["distill_features"] = torch.stack(distances).mean()
        if self.weights["attention"] and -1 in student:
            terms["distill_attention"] = attention_loss(student[-1], teacher[-1])
        return terms

    def _temperatures(self, teacher_nv: Tensor, task: Task) -> Tensor:
        if self.schedule == "adaptive":
            return adaptive_temperature(teacher_nv, self.temperature)
        progress = min(1.0, task.batches_trained / self._total) if self.schedule == "annealed" else 0.0
        return teacher_nv.new_full((len(teacher_nv),), 1 + (self.temperature - 1) * (1 - progress), dtype=torch.float32)

    def _gan_terms(self, task: Task, taught: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made, wanted = task.trace["generator/output"], taught["generator/output"]
        terms: dict[str, Tensor] = {}
        if self.weights["output"]:
            terms["generator/distill_output"] = F.l1_loss(made.float(), wanted.float())
        if self.weights["features"]:
            layers = [self.teacher.discriminator_features(value, task.trace) for value in (made, wanted)]
            terms["generator/distill_features"] = feature_matching(*layers)
        return terms

    def transform_gradients(self, task: Task) -> None:
        if self._optimizer is not None:
            gradients = [projection.grad for projection in self._projections if projection.grad is not None]
            for gradient in gradients if task.trainer.world_size > 1 else ():  # no parameters of DDP
                gradient.copy_(task.trainer.strategy.reduce(gradient.clone(), reduce_op="mean"))
            if torch.isfinite(nn.utils.get_total_norm(gradients)):  # otherwise technique finite or stability skips the step
                self._optimizer.step()
            self._optimizer.zero_grad()

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"teacher": self._file.state, "sequences": self.sequences}
        if self._optimizer is not None:
            state["projections"] = [projection.detach().clone() for projection in self._projections]
            state["optimizer"] = self._optimizer.state_dict()
        return state

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        drawn = {"num_sequences", "sequence_tokens", "seed"} if state["sequences"] else set()
        return frozenset(drawn | ({"projection_lr"} if "projections" in state else set()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._file.restore(state_dict["teacher"])
        self.sequences = list(state_dict["sequences"])
        if "projections" in state_dict:
            self._restored = {name: state_dict[name] for name in ("projections", "optimizer")}


@contextmanager
def _random_state_restored() -> Iterator[None]:
    """Restores the global random state at the end, so that the teacher's draws do not change those of training."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
