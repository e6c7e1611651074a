"""Technique noisy_student: a teacher labels what has no label, and the student learns from that under noise."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from etude.core.alone import owners
from etude.core.batch import Batch, own_inputs
from etude.core.class_protocols import ClassifiesInputs
from etude.core.protocols import HasMelContract, Tokenized
from etude.core.same_file import SameFile
from etude.core.task import Task
from etude.core.technique import BatchSlot, StepSlot, Technique

TEACHER = "technique.noisy_student.teacher"
NO_LABEL = -1


class NoisyStudent(Technique):
    """Gives unlabelled examples the classes that a trained teacher is sure of, and trains the model (the student) on all.

    The teacher sees the batch before any augmentation and without dropout. A class whose probability is at least `threshold`
    becomes the label; what is less sure stays unlabelled. The student learns under noise: its own dropout (`model.dropout`,
    `task.head_dropout`), augmentation (`technique=randaugment`) and `stochastic_depth`. With several rounds, the student's
    weights at the end of each round but the last become the teacher of the next.

    When to use: far more music without labels than with; data.targets may name a column that most pieces lack. Suggested:
    threshold 0.8, a student at least as large as the teacher, and stochastic_depth 0.2 for eight blocks or more.

    Args:
        teacher: a checkpoint, the folder of a run, or last.
        threshold: least probability of a label, in (0, 1).
        rounds: parts of equal length of the run, at least 1; more than 1 needs a student with the teacher's own network.
        stochastic_depth: probability with which the last residual block is left out in a batch, in [0, 1); of earlier blocks it
            falls linearly to 0. None for 0.
        find: returns the path for (teacher, name of the option). load: returns (model, configuration) for a path.
            `etude.run` provides both.
        seed: of the blocks that are left out.

    Raises:
        ValueError: an option out of its range; in setup, there is no teacher, it has other classes or reads other tokens or mels,
            or the task is no classifier.

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
        self.teacher_name, self.threshold, self.rounds = teacher, threshold, rounds
        self.stochastic_depth = stochastic_depth or 0.0
        self._find, self._load = find, load
        self._teacher: list[Any] = []  # in a list, so that it does not become a submodule
        self._file = SameFile("technique noisy_student: the run was taught by", "the teacher")
        self._learned: dict[str, Tensor] = {}  # the teacher's weights from the second round on
        self.round, self.asked, self.given = 0, 0, 0
        self._left_out: set[int] = set()
        self._steps = 1

    @property
    def teacher(self) -> Any:
        """The teacher, in evaluation mode and without gradients."""
        return self._teacher[0]

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"noisy_student/labelled"})

    def paths(self) -> dict[str, Path]:
        return {} if self.teacher_name is None or self._find is None else {"teacher": self._find(self.teacher_name, TEACHER)}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        kind = type(pl_module).__name__
        if not isinstance(pl_module, ClassifiesInputs):
            raise ValueError(f"technique noisy_student gives labels, but {kind} is no classifier; remove it from technique=[...]")
        if pl_module.fully_labelled:
            raise ValueError(
                f"technique noisy_student labels what has no label, and {kind} knows the labels of all its examples; remove "
                "it from technique=[...]"
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
            self._make_stochastic(pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.teacher.to(pl_module.device)

    def _check(self, teacher: Any, task: Any, path: Path) -> None:
        if type(teacher) is not type(task) or {n: tuple(c) for n, c in teacher.labels.items()} != {
            n: tuple(c) for n, c in task.labels.items()
        }:
            raise ValueError(
                f"technique noisy_student: the teacher {path} is no {type(task).__name__} of the same classes; give one that was "
                "trained with the same heads="
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
        self._draw(task)
        return found

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_logged(trainer):
            pl_module.log("noisy_student/labelled", self.given / max(1, self.asked))

    def after_step(self, task: Task) -> None:
        """Makes the student the teacher at the end of a round."""
        now = min(self.rounds - 1, task.steps_trained * self.rounds // self._steps)
        if now > self.round:
            self.round = now
            names = self.teacher.state_dict().keys()
            self._learned = {n: v.detach().clone() for n, v in task.state_dict().items() if n in names}
            self.teacher.load_state_dict(self._learned)

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
        self._depth = len(blocks)
        for number, block in enumerate(blocks):
            block.forward = _left_out_at_times(block.forward, self, number, block)

    def _draw(self, task: Task) -> None:
        if self.stochastic_depth:
            draws = self.generator(task.batches_trained * 65_536 + task.global_rank)
            chance = torch.rand(self._depth, generator=draws)
            self._left_out = {i for i in range(self._depth) if chance[i] < self.stochastic_depth * (i + 1) / self._depth}

    def kept(self, number: int) -> float:
        """Returns the probability with which a block is kept; what it adds is divided by this in training, not scaled later."""
        return 1 - self.stochastic_depth * (number + 1) / self._depth

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "identity": self._file.state, "round": self.round, "learned": self._learned, "asked": self.asked, "given": self.given,
        }  # fmt: skip

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"rounds"})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._file.restore(state_dict["identity"])
        self.round, self._learned = state_dict["round"], dict(state_dict["learned"])
        self.asked, self.given = state_dict["asked"], state_dict["given"]
        if self._learned and self._teacher:
            self.teacher.load_state_dict(self._learned)


def _left_out_at_times(forward: Any, technique: NoisyStudent, number: int, block: nn.Module) -> Any:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not block.training:
            return forward(x, *args, **kwargs)
        return x if number in technique._left_out else x + (forward(x, *args, **kwargs) - x) / technique.kept(number)

    return run
