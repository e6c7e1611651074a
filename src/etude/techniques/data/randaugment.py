"""Technique randaugment: changes each example by operations that are drawn at random and keep its class."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.alone import NO_LABEL, PADDED, alone
from etude.core.batch import Batch
from etude.core.class_protocols import ClassifiesInputs
from etude.core.protocols import Tokenized
from etude.core.task import Task
from etude.core.technique import BatchSlot, Technique

MOST_SEMITONES, MOST_TEMPO, MOST_VELOCITY, MOST_DROPPED = 6, 1.5, 4, 0.5  # at magnitude 1
MOST_LEVEL, MOST_TILT, MOST_NOISE, MOST_MASKED = 0.3, 0.3, 0.1, 0.4  # of normalised mels, about -1 to 1
OF_SCORES = ("transpose", "tempo", "velocity", "drop_bars", "swap_bars")
OF_MELS = ("level", "tilt", "noise", "mask_bands", "mask_frames")
CHANGED_LABELS = {"transpose": "key", "tempo": "tempo_bpm"}


class RandAugment(Technique):
    """Applies `num` operations to each training example, drawn with replacement; `magnitude` is their largest strength.

    Of scores: transpose (up to 6 semitones either way; kept where a note would leave the range), tempo (up to 1.5 times as fast
    or slow), velocity (up to 4 bins), drop_bars (up to half of them), swap_bars (two neighbours but the last change places). Of
    mels: level and tilt (up to 0.3 of the normalised scale), noise (up to a tenth of it), mask_bands and mask_frames (an interval
    of up to 40 % gets the example's mean). These are the limits at magnitude 1; the strength of each operation is uniform below.

    When to use: classifiers that overfit. What `data.transpose` and the like do stays as it is and adds to this. Suggested: num
    2, magnitude 0.5. A grader may hear level, tilt and noise as defects: give it other operations.

    Args:
        num: operations for each example, at least 1. magnitude: in [0, 1]; 0 changes nothing but the order of bars.
        operations: those to draw from; None for all that fit the data.
        seed: of the draws.

    Raises:
        ValueError: an option out of its range; in setup, a task that is no classifier, an operation for other data, or one that
            would change a label, such as the key.

    Source: Cubuk et al. 2020, with operations on music; Park et al. 2019 (masks).
    """

    batch_slot: ClassVar[BatchSlot] = BatchSlot.AUGMENT

    def __init__(
        self, *, num: int = 2, magnitude: float = 0.5, operations: Sequence[str] | None = None, seed: int = 0
    ) -> None:  # fmt: skip
        super().__init__(seed=seed)
        if num < 1:
            raise ValueError(f"technique.randaugment.num is {num}, must be at least 1; 2 is a good start")
        if not 0 <= magnitude <= 1:
            raise ValueError(f"technique.randaugment.magnitude is {magnitude}, must be in [0, 1]; 0.5 is a good start")
        if operations is not None and not operations:
            raise ValueError("technique.randaugment.operations is empty; name some, or leave it out for all")
        self.num, self.magnitude = num, magnitude
        self.operations = None if operations is None else tuple(operations)
        self._chosen: tuple[str, ...] = ()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(pl_module, ClassifiesInputs):
            raise ValueError(
                f"technique randaugment keeps classes, and {type(pl_module).__name__} is no classifier; remove it from "
                "technique=[...], or set data.transpose and the like"
            )
        self._chosen = self.fitting(pl_module)

    def fitting(self, task: ClassifiesInputs) -> tuple[str, ...]:
        """Returns the operations that are drawn for a task. Raises: ValueError for one that does not fit it."""
        known = OF_SCORES if isinstance(task, Tokenized) else OF_MELS
        barred = {name for name, label in CHANGED_LABELS.items() if label in task.labels}
        if isinstance(task, Tokenized) and task.tokenizer.base_size != len(task.tokenizer):
            barred |= {"transpose", "tempo", "velocity"}  # the maps of tokens are those without byte pairs
        if self.operations is None:
            return tuple(name for name in known if name not in barred)
        for name in self.operations:
            if name not in known:
                raise ValueError(f"technique randaugment: {type(task).__name__} has no {name}; choose among {', '.join(known)}")
            if name in barred:
                raise ValueError(
                    f"technique randaugment: {name} would change the label {CHANGED_LABELS.get(name, 'of byte pairs')} of this "
                    f"{type(task).__name__}; leave it out"
                )
        return self.operations

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        draws = self.generator(task.batches_trained * 65_536 + task.global_rank)
        assert isinstance(task, ClassifiesInputs)
        names = self._chosen or self.fitting(task)
        batch = alone(task, batch)
        if isinstance(task, Tokenized):
            return self._scores(task.tokenizer, batch, names, draws)
        ((name, own),) = task.inputs(batch).items()
        mels = own.flatten(0, task.example_axis or 0)
        changed = [self._mel(mel, names, draws) for mel in mels]
        return task.with_inputs(batch, {name: torch.stack(changed).reshape(own.shape)})

    def _mel(self, mel_mf: Tensor, names: tuple[str, ...], draws: torch.Generator) -> Tensor:
        for place in torch.randint(len(names), (self.num,), generator=draws).tolist():
            mel_mf = MEL_OPERATIONS[names[place]](mel_mf, self.magnitude, draws)
        return mel_mf

    def _scores(self, tokenizer: Any, batch: Batch, names: tuple[str, ...], draws: torch.Generator) -> Batch:
        lengths = (batch["documents"] >= 0).sum(1).tolist()
        tokens = batch["tokens"].cpu().numpy()
        rows, places = [], []
        for row, length in zip(tokens, lengths, strict=True):
            ids, place = row[:length].copy(), np.arange(length)
            for drawn in torch.randint(len(names), (self.num,), generator=draws).tolist():
                ids, place = changed_score(names[drawn], tokenizer, ids, place, self.magnitude, draws)
            rows.append(ids)
            places.append(place)
        return _rebuilt(tokenizer, batch, rows, places)

    def state_dict(self) -> dict[str, Any]:
        return {}


def changed_score(
    name: str, tokenizer: Any, ids: np.ndarray, place: np.ndarray, magnitude: float, draws: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of a document after an operation, and where in the document each token was."""
    strength = magnitude * (2 * float(torch.rand((), generator=draws)) - 1)  # in [-magnitude, magnitude]
    if name == "transpose":
        moved = tokenizer.transposition(round(MOST_SEMITONES * strength))[ids]
        return (moved, place) if (moved >= 0).all() else (ids, place)
    if name == "tempo":
        return tokenizer.tempo_scaling(MOST_TEMPO**strength)[ids], place
    if name == "velocity":
        return tokenizer.velocity_scaling(round(MOST_VELOCITY * strength))[ids], place
    body = np.flatnonzero(ids >= tokenizer.first_body)
    starts = [int(body[start]) for start in tokenizer.bar_starts(ids[body])] if len(body) else []
    if len(starts) < 3:
        return ids, place
    borders = [*starts, int(body[-1]) + 1]
    bars = list(range(len(starts)))
    if name == "swap_bars":
        first = int(torch.randint(len(bars) - 2, (), generator=draws))  # the last bar may not be complete, so it stays the last
        bars[first], bars[first + 1] = bars[first + 1], bars[first]
    else:
        dropped = round(MOST_DROPPED * abs(strength) * len(bars))
        bars = sorted(torch.randperm(len(bars), generator=draws)[: len(bars) - dropped].tolist())
    order = [np.arange(borders[0]), *(np.arange(borders[b], borders[b + 1]) for b in bars), np.arange(borders[-1], len(ids))]
    chosen = np.concatenate(order).astype(np.int64)
    return ids[chosen], place[chosen]


def _rebuilt(tokenizer: Any, batch: Batch, rows: list[np.ndarray], places: list[np.ndarray]) -> Batch:
    """Returns the batch with these ids; what belongs to a token moves with it, and features are computed anew."""
    length = max(map(len, rows))
    found: Batch = {}
    for name, value in batch.items():
        made = value.new_full(
            (len(rows), length, *value.shape[2:]), NO_LABEL if name.startswith("label_") else PADDED.get(name, 0)
        )
        for number, place in enumerate(places):
            made[number, : len(place)] = value[number, torch.from_numpy(place).to(value.device)]
        found[name] = made
    device = batch["tokens"].device
    for number, ids in enumerate(rows):
        found["tokens"][number, : len(ids)] = torch.from_numpy(ids.astype(np.int64)).to(device)
        for name, values in tokenizer.features(ids).items():
            if f"feature_{name}" in found:
                found[f"feature_{name}"][number, : len(ids)] = torch.from_numpy(values).to(device, found[f"feature_{name}"].dtype)
    real = found["documents"] >= 0
    found["positions"] = torch.where(real, torch.arange(length, device=device), 0)
    return found


# --- operations on normalised mels [m, f] ---


def _signed(magnitude: float, draws: torch.Generator) -> float:
    return magnitude * (2 * float(torch.rand((), generator=draws)) - 1)


def _level(mel_mf: Tensor, magnitude: float, draws: torch.Generator) -> Tensor:
    return mel_mf + MOST_LEVEL * _signed(magnitude, draws)


def _tilt(mel_mf: Tensor, magnitude: float, draws: torch.Generator) -> Tensor:
    slope = torch.linspace(-1, 1, mel_mf.shape[0], device=mel_mf.device)[:, None]
    return mel_mf + MOST_TILT * _signed(magnitude, draws) * slope


def _noise(mel_mf: Tensor, magnitude: float, draws: torch.Generator) -> Tensor:
    deviation = MOST_NOISE * abs(_signed(magnitude, draws))
    return mel_mf + deviation * torch.randn(mel_mf.shape, generator=draws).to(mel_mf)


def _masked(mel_mf: Tensor, magnitude: float, draws: torch.Generator, axis: int) -> Tensor:
    size = mel_mf.shape[axis]
    width = round(MOST_MASKED * abs(_signed(magnitude, draws)) * size)
    start = int(torch.randint(size - width + 1, (), generator=draws))
    hidden = torch.zeros(size, dtype=torch.bool, device=mel_mf.device)
    hidden[start : start + width] = True
    return torch.where(hidden[:, None] if axis == 0 else hidden[None], mel_mf.mean(), mel_mf)


def _mask_bands(mel_mf: Tensor, magnitude: float, draws: torch.Generator) -> Tensor:
    return _masked(mel_mf, magnitude, draws, 0)


def _mask_frames(mel_mf: Tensor, magnitude: float, draws: torch.Generator) -> Tensor:
    return _masked(mel_mf, magnitude, draws, 1)


MEL_OPERATIONS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "level": _level, "tilt": _tilt, "noise": _noise, "mask_bands": _mask_bands, "mask_frames": _mask_frames,
}  # fmt: skip
