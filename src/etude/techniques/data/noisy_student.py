"""Technique noisy_student: a teacher labels what has no label, or draws music, and the student learns from that under noise."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from etude.core.alone import owners
from etude.core.batch import Batch, own_inputs
from etude.core.class_protocols import ClassifiesInputs
from etude.core.protocols import HasMelContract, KnowsClasses, PacksTokens, PredictsTokens, Tokenized
from etude.core.same_file import SameFile
from etude.core.stochastic_depth import StochasticDepth
from etude.core.task import Task
from etude.core.technique import BatchSlot, StepSlot, Technique
from etude.evaluation.teacher_samples import TeacherSamples, draw_samples

TEACHER = "technique.noisy_student.teacher"
NO_LABEL = -1
NUM_SAMPLES, SHARE = 256, 0.25  # where they are not given


class NoisyStudent(Technique):
    """Gives unlabelled examples the classes that a trained teacher is sure of, and trains the model (the student) on all.

    The teacher sees the batch before any augmentation and without dropout. A class whose probability is at least `threshold`
    becomes the label; what is less sure stays unlabelled. The student learns under noise: its own dropout (`model.dropout`,
    `task.head_dropout`), augmentation (`technique=randaugment`) and `stochastic_depth`. With several rounds, the student's
    weights at the end of each round but the last become the teacher of the next.

    For a language model the teacher draws `samples` pieces before training and at the beginning of each later round. Those whose
    quality is at least `threshold` (0 to 1: how close a piece's rhythm, harmony, melody and structure are to training music, see
    `metrics.scores.dimensions.quality_of_pieces`) join the training: a `share` of the rows of each batch is replaced by rows of
    samples. Samples that reach the length of a row are cut at their last bar. They are drawn without a request, so they are
    learnt without controls. The checkpoint contains them.

    When to use: far more music without labels than with; data.targets may name a column that most pieces lack. Language models:
    little music, and a teacher that has seen more or is larger. Suggested: threshold 0.8 (0.7 for samples of a small teacher;
    19 of 20 real pieces reach it), a student at least as large as the teacher, stochastic_depth 0.2 for eight blocks or more.

    Args:
        teacher: a checkpoint, the folder of a run, or last.
        threshold: least probability of a label, or quality of a sample, in (0, 1).
        rounds: parts of equal length of the run, at least 1; more than 1 needs a student with the teacher's own network.
        stochastic_depth: probability with which the last residual block is left out in a batch, in [0, 1); of earlier blocks it
            falls linearly to 0. None for 0.
        samples: pieces that the teacher of a language model draws for each round, at least 1. None for 256.
        share: of the rows that are samples, for language models, in (0, 1). None for 0.25.
        find: returns the path for (teacher, name of the option). load: returns (model, configuration) for a path.
            `etude.run` provides both.
        seed: of the blocks that are left out, the samples and their rows.

    Raises:
        ValueError: an option out of its range; in setup, there is no teacher, it has other classes or reads other tokens or mels,
            none of its samples is good enough, the task is neither a classifier nor a language model, or stochastic_depth
            on several devices.

    Source: Xie et al. 2020, algorithm 1, with hard labels; Huang et al. 2016, equation 4 (stochastic depth).
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.SELECT
    step_slot: ClassVar[StepSlot] = StepSlot.PLAN

    def __init__(
        self,
        *,
        teacher: str | None = None,
        threshold: float = 0.8,
        rounds: int = 1,
        stochastic_depth: float | None = None,
        samples: int | None = None,
        share: float | None = None,
        find: Callable[[str, str], Path] | None = None,
        load: Callable[[Path], tuple[Any, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if not 0 < threshold < 1:
            raise ValueError(f"technique.noisy_student.threshold is {threshold}, must be in (0, 1); 0.8 is a good start")
        if rounds < 1:
            raise ValueError(f"technique.noisy_student.rounds is {rounds}, must be at least 1")
        if stochastic_depth is not None and not 0 <= stochastic_depth < 1:
            raise ValueError(f"technique.noisy_student.stochastic_depth is {stochastic_depth}, must be in [0, 1)")
        if samples is not None and samples < 1:
            raise ValueError(f"technique.noisy_student.samples is {samples}, must be at least 1; 256 is a good start")
        if share is not None and not 0 < share < 1:
            raise ValueError(f"technique.noisy_student.share is {share}, must be in (0, 1); 0.25 is a good start")
        self.num_samples, self.share = samples, share
        self.samples = TeacherSamples()
        self.teacher_name, self.threshold, self.rounds = teacher, threshold, rounds
        self.stochastic_depth = stochastic_depth or 0.0
        self._find, self._load = find, load
        self._teacher: list[Any] = []  # in a list, so that it does not become a submodule
        self._file = SameFile("technique noisy_student: the run was taught by", "the teacher")
        self._learned: dict[str, Tensor] = {}  # the teacher's weights from the second round on
        self.round, self.asked, self.given = 0, 0, 0
        self.depth: StochasticDepth | None = None
        self._steps = 1

    @property
    def teacher(self) -> Any:
        """The teacher, in evaluation mode and without gradients."""
        return self._teacher[0]

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"noisy_student/labelled", "noisy_student/kept", "noisy_student/quality"})

    def paths(self) -> dict[str, Path]:
        return {} if self.teacher_name is None or self._find is None else {"teacher": self._find(self.teacher_name, TEACHER)}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        kind = type(pl_module).__name__
        if isinstance(pl_module, PredictsTokens):
            if not isinstance(trainer.datamodule, PacksTokens):  # type: ignore[attr-defined]
                raise ValueError(
                    f"technique noisy_student compares samples of {kind} with training pieces, which these data do not show; set "
                    "data=folder, or other data of scores"
                )
        elif not isinstance(pl_module, ClassifiesInputs):
            raise ValueError(
                f"technique noisy_student is for classifiers and language models, and {kind} is neither; remove it from "
                "technique=[...]"
            )
        elif pl_module.fully_labelled:
            raise ValueError(
                f"technique noisy_student labels what has no label, and {kind} knows the labels of all its examples; remove "
                "it from technique=[...]"
            )
        elif self.num_samples is not None or self.share is not None:
            raise ValueError(
                f"technique noisy_student draws samples and a share of rows for language models only, and this is a {kind}; "
                "leave samples and share out"
            )
        if self.teacher_name is None or self._load is None:
            raise ValueError(
                f"technique noisy_student needs a teacher for this {kind}; give {TEACHER}=CHECKPOINT, a run's folder, or last"
            )
        path = self._find(self.teacher_name, TEACHER) if self._find is not None else Path(self.teacher_name)
        self._file.found(path)
        teacher = self._load(Path(path))[0]
        self._check(teacher, pl_module, path)
        if trainer.max_steps < 1 and self.rounds > 1:
            raise ValueError(f"technique noisy_student divides this {kind}'s run into rounds; set max_steps")
        self._steps = max(1, trainer.max_steps)
        teacher.requires_grad_(False)
        self._teacher = [teacher.eval()]
        if self._learned:
            teacher.load_state_dict(self._learned)
        if self.stochastic_depth:
            if trainer.world_size > 1:
                raise ValueError(
                    f"technique noisy_student.stochastic_depth leaves blocks of {kind} without a gradient in some batches, and "
                    "on several devices every batch must train all weights; set trainer.devices=1, or leave stochastic_depth out"
                )
            self._make_stochastic(pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.teacher.to(pl_module.device)
        if isinstance(pl_module, PredictsTokens) and not self.samples.bodies:  # a run that goes on has them
            self._draw_samples(trainer)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        known = data.classes("train") if isinstance(data, KnowsClasses) and isinstance(pl_module, ClassifiesInputs) else {}
        if known and trainer.is_global_zero and all((each != NO_LABEL).all() for each in known.values()):
            print(
                f"note: technique noisy_student: every training piece has a label for {' and '.join(known)}, so the teacher has "
                "nothing to label; add pieces without one",
                file=sys.stderr,
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.asked and trainer.is_global_zero:
            unsure = "" if self.given == self.asked else f"; of the others it was not sure (threshold={self.threshold})"
            print(
                f"technique noisy_student: the teacher gave {self.given} of the {self.asked} labels that were missing, counted "
                f"in every batch{unsure}",
                file=sys.stderr,
            )

    def _draw_samples(self, trainer: pl.Trainer) -> None:
        """Draws the samples of this round, on one rank for all."""
        found: Any = None
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            try:
                found = draw_samples(
                    self.teacher, data, count=self.num_samples or NUM_SAMPLES, most_tokens=data.max_len - 1,
                    threshold=self.threshold, seed=self.generator(2**40 + self.round).initial_seed() % 2**31,
                )  # fmt: skip
            except ValueError as error:
                found = str(error)
        found = trainer.strategy.broadcast(found)
        if isinstance(found, str):
            raise ValueError(f"technique noisy_student: {found}")
        self.samples = found

    def _check(self, teacher: Any, task: Any, path: Path) -> None:
        classes = [{n: tuple(c) for n, c in one.labels.items()} for one in (task, teacher) if isinstance(one, ClassifiesInputs)]
        if type(teacher) is not type(task) or classes[:1] != classes[1:]:
            of = " of the same classes; give one that was trained with the same heads="
            raise ValueError(
                f"technique noisy_student: the teacher {path} is no {type(task).__name__}"
                f"{of if classes else '; give a checkpoint of task=language_model'}"
            )
        mine, its = (one.tokenizer.fingerprint if isinstance(one, Tokenized) else None for one in (task, teacher))
        mels = [one.contract if isinstance(one, HasMelContract) else None for one in (task, teacher)]
        if mine != its or mels[0] != mels[1]:
            raise ValueError(
                f"technique noisy_student: the teacher {path} reads other tokens or mels than this {type(task).__name__}; give "
                "one of the same tokenizer= or contract="
            )
        if self.rounds > 1:
            own, theirs = ({n: v.shape for n, v in one.named_parameters()} for one in (task, teacher))
            if own != theirs:
                raise ValueError(
                    f"technique noisy_student: in rounds the student's weights become the teacher's, but {path} has another "
                    f"network than this {type(task).__name__}; set rounds=1, or the model of its run"
                )

    # --- labels ---

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        if self.depth is not None:
            self.depth.draw(self.generator(task.batches_trained * 65_536 + task.global_rank))
        if isinstance(task, PredictsTokens):
            draws = self.generator(2**41 + task.batches_trained * 65_536 + task.global_rank)
            return self.samples.put_into(batch, task.tokenizer, SHARE if self.share is None else self.share, draws)
        return self._labelled(task, batch)

    def _labelled(self, task: Task, batch: Batch) -> Batch:
        assert isinstance(task, ClassifiesInputs)
        with torch.no_grad():
            logits = self.teacher.class_logits(own_inputs(batch))
        found = dict(batch)
        for name in task.labels:
            probability, said = (logits[name].float() / self.teacher.temperatures[name]).softmax(-1).max(-1)
            sure = torch.where(probability >= self.threshold, said, NO_LABEL)
            label = batch[f"label_{name}"]
            if "documents" in batch:
                owner = owners(batch["documents"])
                new = torch.where(owner >= 0, sure[owner.clamp(min=0)], NO_LABEL)
            else:
                new = sure.reshape(label.shape)
            missing = task.documents(batch, f"label_{name}") == NO_LABEL
            self.asked += int(missing.sum())
            self.given += int((missing & (sure != NO_LABEL)).sum())
            found[f"label_{name}"] = torch.where(label == NO_LABEL, new.to(label), label)
        return found

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.is_logged(trainer):
            return
        if isinstance(pl_module, PredictsTokens):
            found = {"noisy_student/kept": self.samples.kept, "noisy_student/quality": self.samples.quality}
            pl_module.log_dict(found)
        else:
            pl_module.log("noisy_student/labelled", self.given / max(1, self.asked))

    def after_step(self, task: Task) -> None:
        """Makes the student the teacher at the end of a round."""
        now = min(self.rounds - 1, task.steps_trained * self.rounds // self._steps)
        if now > self.round:
            self.round = now
            names = self.teacher.state_dict().keys()
            self._learned = {n: v.detach().clone() for n, v in task.state_dict().items() if n in names}
            self.teacher.load_state_dict(self._learned)
            if isinstance(task, PredictsTokens):
                self._draw_samples(task.trainer)

    # --- stochastic depth ---

    @property
    def acts_on_layers(self) -> bool:
        return self.stochastic_depth > 0

    def _make_stochastic(self, task: Any) -> None:
        blocks: list[nn.Module] = list(task.residual_blocks)
        if not blocks:
            raise ValueError(
                f"technique noisy_student.stochastic_depth leaves out residual blocks, and this {type(task).__name__} has none; "
                "leave it out"
            )
        self.depth = StochasticDepth(blocks, self.stochastic_depth)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "identity": self._file.state, "round": self.round, "learned": self._learned, "asked": self.asked, "given": self.given,
            **({"samples": self.samples.state_dict()} if self.samples.bodies else {}),
        }  # fmt: skip

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"rounds", "samples", "threshold", "seed"} if "samples" in state else {"rounds"})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._file.restore(state_dict["identity"])
        self.round, self._learned = state_dict["round"], dict(state_dict["learned"])
        self.asked, self.given = state_dict["asked"], state_dict["given"]
        self.samples = TeacherSamples(**state_dict.get("samples", {}))
        if self._learned and self._teacher:
            self.teacher.load_state_dict(self._learned)
