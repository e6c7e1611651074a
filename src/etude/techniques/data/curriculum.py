"""Technique curriculum: trains on easy pieces first and admits harder ones as training proceeds."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.core.protocols import PieceTable, PredictsTokens
from etude.core.task import Task
from etude.core.technique import Technique
from etude.optim.pacing import PACINGS, check_share, competence, progress_at
from etude.optim.plateau import Plateau, check_mode, watched_options

AXES = ("rhythmic", "harmonic", "melodic", "structural")
LOSS_DECAY = 0.7  # of the running loss of a piece, each time it is drawn
PACE_FACTOR, MIN_PACE, MAX_PACE = 1.25, 0.25, 2.0  # of the adaptive pace: its change after a validation, and its limits
SETBACK = 0.1  # progress that is lost when a validation does not improve


class Curriculum(Technique):
    """Admits pieces in the order of their difficulty: easy ones first, harder ones as the competence grows.

    A piece is admitted when its difficulty, a rank in (0, 1] among the training pieces, is at most the competence c(t); t
    goes from 0 to 1 over the first `end` of all batches (see `etude.optim.pacing`). Difficulties:

    - music: the mean rank over four axes (rhythmic: syncopation, onset entropy, tuplets, metre changes; harmonic: key
      distance, chord changes, notes out of the scale; melodic: interval entropy, range, new motifs; structural: new bars,
      length), each the mean rank of its features.
    - loss: the model's running loss of the piece, ranked again at every validation; a piece that has not been drawn yet is
      ranked as for music.
    - any numeric column of the manifest.

    With `pacing=musical` each axis has its own competence, with root pacing at the speed given in `axes`. A piece is admitted
    when it is easy enough on all axes; the share `start` of the pieces that is admitted soonest is admitted from the beginning.
    With `by_genre` pieces are ranked within each genre. The easiest `diversity` of each genre's pieces are always admitted, so
    that there is never only one genre. With `adaptive` the pace grows by a quarter after each validation that improves on the
    best `monitor`; a validation that does not improve lowers the pace and sets t back by a tenth. Batches that loader workers
    have drawn ahead are not affected by such a change.

    When to use: data of mixed difficulty and few steps. `reverse`, hard pieces first, is the control experiment.
    Source: Bengio et al. 2009; Platanios et al. 2019 (competence).

    Args:
        difficulty: music, loss, or a column.
        pacing: linear, root, exponential, cosine or musical.
        start: competence at the beginning, in (0, 1]. end: share of the run after which all pieces are admitted, in (0, 1].
        power: of root pacing, above 0.
        axes: speed of each axis with pacing=musical, above 0; at speed 2 an axis needs half the time.
        adaptive: validation sets the pace. monitor: its metric; None for the task's main metric. mode: "min" if lower values
            are better, "max" if higher values are.
        by_genre: rank within each genre. diversity: share of each genre that is always admitted, in [0, 1].
        reverse: hard pieces first.
    """

    def __init__(
        self,
        *,
        difficulty: str = "music",
        pacing: str = "root",
        start: float = 0.2,
        end: float = 0.4,
        power: float = 2.0,
        axes: Mapping[str, float] | None = None,
        adaptive: bool = False,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        by_genre: bool = False,
        diversity: float = 0.1,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        check_share("curriculum.start", start)
        check_share("curriculum.end", end)
        check_mode("curriculum.mode", mode)
        if pacing not in (*PACINGS, "musical"):
            raise ValueError(f"technique.curriculum.pacing is {pacing!r}; choose from {', '.join(PACINGS)}, musical")
        if power <= 0:
            raise ValueError(f"technique.curriculum.power is {power}, must be above 0; 2 is the square root")
        if not 0 <= diversity <= 1:
            raise ValueError(f"technique.curriculum.diversity is {diversity}, must be in [0, 1]")
        self.speeds = {axis: float((axes or {}).get(axis, 1.0)) for axis in AXES}
        if unknown := set(axes or {}) - set(AXES):
            raise ValueError(f"technique.curriculum.axes names {sorted(unknown)[0]!r}; the axes are {', '.join(AXES)}")
        if min(self.speeds.values()) <= 0:
            raise ValueError(f"technique.curriculum.axes is {dict(axes or {})}: speeds must be above 0")
        if pacing == "musical" and difficulty != "music":
            raise ValueError(f"technique.curriculum.pacing=musical needs difficulty=music, not {difficulty!r}")
        self.difficulty, self.pacing, self.start, self.end, self.power = difficulty, pacing, start, end, power
        self.adaptive, self.monitor, self.by_genre, self.diversity, self.reverse = adaptive, monitor, by_genre, diversity, reverse
        self.mode, self.plateau = mode, Plateau(mode=mode)
        self.paces: list[list[float]] = [[0, 0.0, 1.0]]  # [first batch, progress at that batch, pace], in order
        self.tables: list[tuple[int, Tensor]] = []  # (first batch, progress at which each piece is admitted)
        self._losses = torch.empty(0, dtype=torch.float64)  # running loss of each piece; NaN if it was never drawn
        self._span = 1.0

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"curriculum/competence", "curriculum/eligible"})

    # --- difficulty ---

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, PieceTable):
            raise ValueError(
                f"technique curriculum chooses pieces by their difficulty, but {type(pl_module).__name__}'s data "
                f"({type(data).__name__}) has no table of pieces; remove it from technique=[...]"
            )
        if self.difficulty == "loss" and not isinstance(pl_module, PredictsTokens):
            raise ValueError(
                f"technique curriculum with difficulty=loss needs the losses of tokens, {type(pl_module).__name__} has none"
            )
        if trainer.max_steps < 1:
            raise ValueError("technique curriculum needs the length of the run; set max_steps")
        self._span = max(1.0, self.end * trainer.max_steps * trainer.accumulate_grad_batches)
        self._columns = data.pieces()
        self._genres = np.unique(self._columns["genre"], return_inverse=True)[1]
        self._lookahead = data.lookahead
        if not self.tables:
            self.tables = [(0, self._admission_times(self._ranks()))]
            self._losses = torch.full((len(self._genres),), float("nan"), dtype=torch.float64)
        data.admit("curriculum", self.rule)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.adaptive:
            assert isinstance(pl_module, Task)
            self.monitor = self.monitor or pl_module.logged_metrics[0]
            pl_module.check_metric(self.monitor, "technique.curriculum.monitor", self.mode)

    def _ranks(self) -> dict[str, np.ndarray]:
        """Returns the rank in (0, 1] of each piece: one array for each axis for music, otherwise one array named "all"."""
        columns = self._columns
        if self.difficulty not in ("music", "loss"):
            values = columns.get(self.difficulty)
            if values is None or not np.issubdtype(values.dtype, np.number):
                numeric = sorted(name for name, column in columns.items() if np.issubdtype(column.dtype, np.number))
                raise ValueError(
                    f"technique.curriculum.difficulty is {self.difficulty!r}; choose music, loss or a numeric column of the "
                    f"manifest: {', '.join(numeric)}"
                )
            return {"all": self._rank(values.astype(np.float64))}
        features = {axis: [name for name in columns if name.startswith(f"complexity_{axis}_")] for axis in AXES}
        return {axis: self._rank(np.mean([self._rank(columns[n]) for n in names], axis=0)) for axis, names in features.items()}

    def _rank(self, values: np.ndarray) -> np.ndarray:
        ranks = np.empty(len(values))
        groups = self._genres if self.by_genre else np.zeros(len(values), np.int64)
        for group in np.unique(groups):
            mine = np.flatnonzero(groups == group)
            _, place, count = np.unique(np.nan_to_num(values[mine]), return_inverse=True, return_counts=True)
            ranks[mine] = (np.cumsum(count) / len(mine))[place]  # equal values are admitted together
        return ranks

    def _admission_times(self, ranks: Mapping[str, np.ndarray]) -> Tensor:
        """Returns the progress t at which each piece is admitted; 0 if it is admitted from the beginning."""
        musical = self.pacing == "musical"
        if self.reverse:
            ranks = {name: self._rank(-values) for name, values in ranks.items()}
        if not musical:
            ranks = {"all": self._rank(np.mean(list(ranks.values()), axis=0))}
        options: dict[str, Any] = {"pacing": "root" if musical else self.pacing, "start": self.start, "power": self.power}
        speeds = {name: self.speeds[name] if musical else 1.0 for name in ranks}
        needed = [np.array([progress_at(r, **options) for r in ranks[name]]) / speeds[name] for name in ranks]
        times = np.max(needed, axis=0)
        order = np.argsort(times, kind="stable")
        times[order[: max(1, int(self.start * len(times)))]] = 0.0
        for genre in range(int(self._genres.max()) + 1):
            mine = order[self._genres[order] == genre]
            times[mine[: int(np.ceil(self.diversity * len(mine)))]] = 0.0
        return torch.from_numpy(times)

    # --- pacing ---

    def progress(self, draw: int) -> float:
        """Returns the progress t at batch number `draw`; above 1 if all pieces are admitted."""
        first, done, pace = next(change for change in reversed(self.paces) if change[0] <= draw)
        return done + pace * (draw - first) / self._span

    def rule(self, rows: np.ndarray, draw: int) -> np.ndarray:
        """Returns 1 for each of `rows` (of the manifest) that is admitted to batch number `draw`, else 0."""
        times = next(times for first, times in reversed(self.tables) if first <= draw)
        admitted: np.ndarray = (times.numpy()[rows] <= self.progress(draw) + 1e-9).astype(np.float64)
        return admitted

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.difficulty == "loss":
            counted = (batch["targets"] != -100) & (batch["piece"] >= 0) & task.trace["token_nll"].isfinite()
            pieces, nll = batch["piece"][counted].cpu(), task.trace["token_nll"].detach()[counted].double().cpu()
            seen, place = pieces.unique(return_inverse=True)
            mean = torch.zeros(len(seen), dtype=torch.float64).index_add_(0, place, nll) / place.bincount()
            before = self._losses[seen]
            self._losses[seen] = torch.where(before.isnan(), mean, LOSS_DECAY * before + (1 - LOSS_DECAY) * mean)
        return {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.is_logged(trainer):
            return
        assert isinstance(pl_module, Task)
        draw = pl_module.batches_trained
        progress = self.progress(draw)
        pacing = "root" if self.pacing == "musical" else self.pacing
        pl_module.log("curriculum/competence", competence(progress, pacing=pacing, start=self.start, power=self.power))
        pl_module.log("curriculum/eligible", float(self.rule(np.arange(len(self._genres)), draw).mean()))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(pl_module, Task):
            return
        now = pl_module.batches_trained
        first = now + self._lookahead
        if self.difficulty == "loss":
            self._losses = _mean_over_ranks(self._losses, trainer, pl_module.device)
            by_music = np.mean(list(self._ranks().values()), axis=0)
            losses = self._losses.numpy()
            seen = np.isfinite(losses)
            by_loss = by_music.copy()
            if seen.any():
                by_loss[seen] = np.quantile(by_music, (losses[seen].argsort().argsort() + 0.5) / seen.sum())
            self.tables = [*_still_needed(self.tables, now), (first, self._admission_times({"all": self._rank(by_loss)}))]
        if self.adaptive and (value := trainer.callback_metrics.get(str(self.monitor))) is not None:
            progress, pace = self.progress(first), self.paces[-1][2]
            if self.plateau.improves(float(value)):
                pace = min(MAX_PACE, pace * PACE_FACTOR)
            else:
                progress, pace = max(0.0, min(progress, 1.0) - SETBACK), max(MIN_PACE, pace / PACE_FACTOR)
            self.paces = [*_still_needed(self.paces, now), [first, progress, pace]]

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {**self.plateau.state_dict(), "paces": self.paces, "tables": self.tables, "losses": self._losses}

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        table = {"difficulty", "pacing", "start", "power", "axes", "by_genre", "diversity", "reverse"}
        return frozenset(table) | watched_options(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.plateau.load_state_dict(state_dict)
        self.paces = [list(change) for change in state_dict["paces"]]
        self.tables, self._losses = [(first, times) for first, times in state_dict["tables"]], state_dict["losses"]


def _still_needed(changes: list[Any], now: int) -> list[Any]:
    """Returns the change that applies at batch `now` and all later ones."""
    current = max(i for i, change in enumerate(changes) if change[0] <= now)
    return changes[current:]


def _mean_over_ranks(losses: Tensor, trainer: pl.Trainer, device: torch.device) -> Tensor:
    """Returns the mean loss over the ranks that have drawn a piece, so that all ranks choose alike; NaN if none has."""
    if trainer.world_size == 1:
        return losses
    drawn = losses.isfinite()
    both = torch.stack([torch.where(drawn, losses, 0.0), drawn.double()]).to(device)
    total, count = trainer.strategy.reduce(both, reduce_op="sum").cpu()
    return torch.where(count > 0, total / count, torch.nan)
