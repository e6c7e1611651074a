"""Technique affinity: measures during training which heads of a classifier help which, and tells the groups that follow."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core import lightning
from etude.core.batch import Batch
from etude.core.heads import HasHeads
from etude.core.sharding import is_sharded
from etude.core.task import Task
from etude.core.technique import Technique
from etude.metrics.sets.affinity import MOST, best_groups
from etude.report.files import write_atomically
from etude.report.grade_plots import signed_table

Measure = Literal["lookahead", "cosine"]


class Affinity(Technique):
    """Measures how much a step for one head lowers the loss of another, through the weights that both use.

    - lookahead: on a batch, the shared weights make a step along the gradient of head i alone; the affinity of i to j is
      1 - L_j after the step / L_j before it. Above 0, training i helps j. The step has the same length for every head.
    - cosine: the cosine between the gradients of the two heads; cheaper, and the same in both directions.

    The means over the measurements are logged as `affinity/SOURCE_to_TARGET`. At the end of training the run's folder gets
    `affinity.csv` and `affinity.png`, and a line tells the groups of heads that help each other most, to be trained apart as
    `heads=[[...],[...]]`. A head without a label in the batch is left out of that measurement.

    When to use: to find out which heads to train together. Nothing of the training changes; a measurement takes as long as
    about 2 steps for each head (cosine: 1).

    Args:
        measure: lookahead or cosine.
        every: batches from one measurement to the next, at least 1; the first batch has one.
        step: lookahead: length of the step as a share of the norm of the shared weights, in (0, 1). With a long step, such as
            0.01, a step for any head harms all others.
        num_groups: how many groups to tell; None for as many as are worth most.

    Raises:
        ValueError: an option is out of its range; in setup, the task has no heads, one alone, or more than 9, or its weights are
            sharded; at the first batch, no weight is used by two heads.

    Source: Fifty et al. 2021, equation 1 and section 3.2 (lookahead; groups); Yu et al. 2020 (cosine). Deviation: steps of one
        length for all heads instead of the optimizer's.
    """

    only_observes: ClassVar[bool] = True

    def __init__(
        self, *, measure: Measure = "lookahead", every: int = 10, step: float = 0.001, num_groups: int | None = None
    ) -> None:
        super().__init__()
        if measure not in get_args(Measure):
            raise ValueError(f"technique.affinity.measure is {measure!r}, must be one of {', '.join(get_args(Measure))}")
        if every < 1:
            raise ValueError(f"technique.affinity.every is {every}, must be at least 1 batch; 10 is a good start")
        if not 0 < step < 1:
            raise ValueError(f"technique.affinity.step is {step}, must be in (0, 1); 0.001 is a good start")
        if num_groups is not None and num_groups < 1:
            raise ValueError(f"technique.affinity.num_groups is {num_groups}, must be at least 1, or null")
        self.measure: Measure = measure
        self.every, self.step, self.num_groups = every, step, num_groups
        self.heads: tuple[str, ...] = ()
        self.sums, self.counts = torch.zeros(0, 0), torch.zeros(0, 0)  # [source, target]

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset(f"affinity/{a}_to_{b}" for a in self.heads for b in self.heads if a != b)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        kind = type(pl_module).__name__
        if not isinstance(pl_module, HasHeads) or not 2 <= len(pl_module.head_names) <= MOST:
            raise ValueError(
                f"technique affinity compares 2 to {MOST} heads, and {kind} has "
                f"{len(pl_module.head_names) if isinstance(pl_module, HasHeads) else 'none'}; choose task=classifier "
                "heads=[genre,metre], say, or remove it from technique=[...]"
            )
        if is_sharded(trainer):
            raise ValueError(f"technique affinity needs whole weights of {kind}, but trainer=fsdp shards them; use trainer=ddp")
        count = len(pl_module.head_names)
        if self.num_groups is not None and self.num_groups > count:
            raise ValueError(
                f"technique.affinity.num_groups is {self.num_groups}, and there are {count} heads; set fewer, or null"
            )
        heads = tuple(pl_module.head_names)
        if heads != self.heads:
            self.heads, self.sums, self.counts = heads, *(torch.zeros(2, len(heads), len(heads), dtype=torch.float64))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        if (pl_module.batches_trained - 1) % self.every == 0:
            found = lightning.mean_over_ranks(trainer, self._measured(pl_module, batch)).double().cpu()
            known = found.isfinite()
            self.sums[known] += found[known]
            self.counts += known
        if self.is_logged(trainer):
            table = self.table()
            pairs = [(i, j) for i in range(len(self.heads)) for j in range(len(self.heads)) if i != j and table[i, j].isfinite()]
            pl_module.log_dict({f"affinity/{self.heads[i]}_to_{self.heads[j]}": table[i, j].float() for i, j in pairs})

    def table(self) -> Tensor:
        """Returns the mean affinities so far, [source, target]; NaN where none was measured."""
        return self.sums / torch.where(self.counts > 0, self.counts, torch.nan)

    # --- one measurement ---

    def _measured(self, task: Task, batch: Batch) -> Tensor:
        """Returns the affinities on one batch, [source, target]; NaN where a head has no label."""
        with torch.enable_grad():
            losses = task.losses_at(batch)
            names = [name for name, p in task.named_parameters() if p.requires_grad]
            weights = [p for p in task.parameters() if p.requires_grad]
            rows = [
                torch.autograd.grad(losses[h], weights, retain_graph=True, allow_unused=True, materialize_grads=False)
                for h in self.heads
            ]
        uses = [sum(row[i] is not None for row in rows) for i in range(len(names))]
        shared = [i for i, count in enumerate(uses) if count > 1]
        if not shared:
            raise ValueError(
                f"technique affinity needs weights that two heads of {type(task).__name__} share, and there are none; set "
                "sharing=hard, with heads=[...] in one group"
            )
        found = torch.full((len(self.heads), len(self.heads)), torch.nan, device=weights[0].device)
        flat = [_flat([row[i] for i in shared], [weights[i] for i in shared]) for row in rows]
        norms = [float(gradient.norm()) for gradient in flat]
        live = [i for i, norm in enumerate(norms) if norm > 0]  # the others have no label in this batch
        used = [[row[i] is not None for i in shared] for row in rows]
        together = [[any(a and b for a, b in zip(used[i], used[j], strict=True)) for j in live] for i in live]
        if self.measure == "cosine":
            for a, i in enumerate(live):
                for b, j in enumerate(live):
                    if together[a][b]:
                        found[i, j] = flat[i] @ flat[j] / (norms[i] * norms[j])
            return found
        length = self.step * float(_flat([weights[i].detach() for i in shared], []).norm())
        for a, i in enumerate(live):
            moved = {names[k]: weights[k].detach() - length / norms[i] * rows[i][k] for k in shared if rows[i][k] is not None}
            with torch.no_grad():
                after = task.losses_at(batch, parameters=moved)
            for b, j in enumerate(live):
                if together[a][b]:
                    found[i, j] = 1 - after[self.heads[j]] / losses[self.heads[j]].detach()
        return found

    # --- what is told ---

    def groups(self) -> list[list[str]]:
        """Returns the groups of heads that help each other most, by the means so far; [] where a pair was not measured."""
        if self.table().isnan().any():
            return []
        return [[self.heads[i] for i in group] for group in best_groups(self.table().numpy(), num_groups=self.num_groups)]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not self.counts.any():
            return
        folder, table, groups = Path(trainer.default_root_dir), self.table().numpy(), self.groups()
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["source", *(f"to {name}" for name in self.heads), "group"])
        group_of = {name: number for number, group in enumerate(groups, start=1) for name in group}
        for name, row in zip(self.heads, table, strict=True):
            writer.writerow([name, *(f"{value:.6f}" for value in row), group_of.get(name, "")])
        write_atomically(folder / "affinity.csv", text.getvalue())
        title = (
            "how much a step for one head lowers the loss of another" if self.measure == "lookahead" else "cosine of gradients"
        )
        picture = signed_table(table, list(self.heads), title=title, rows="step for", columns="loss of")
        (folder / "affinity.png").write_bytes(picture)
        shown = "[" + ",".join(f"[{','.join(group)}]" for group in groups) + "]"
        told = (
            f"heads={shown} help each other most"
            if groups
            else "no groups, since two heads share no weights or never had labels at once"
        )
        print(f"affinity: {told}; {folder / 'affinity.csv'} has the table", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        return {"measure": self.measure, "heads": list(self.heads), "sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["measure"] == self.measure and tuple(state_dict["heads"]) == (self.heads or tuple(state_dict["heads"])):
            self.heads, self.sums = tuple(state_dict["heads"]), state_dict["sums"].clone()
            self.counts = state_dict["counts"].clone()

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"measure"})


def _flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """Returns the tensors as one vector, float32; zeros, of the shape in `like`, where there is none."""
    filled = [torch.zeros_like(like[i]) if x is None else x for i, x in enumerate(tensors)]
    return torch.cat([x.detach().flatten().float() for x in filled])
