"""Technique randaugment: changes each example by operations that are drawn at random and keep its class, or keep it music."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.alone import NO_LABEL, PADDED, alone
from etude.core.batch import Batch
from etude.core.class_protocols import ClassifiesInputs
from etude.core.protocols import PredictsTokens, Tokenized
from etude.core.task import Task
from etude.core.technique import BatchSlot, Technique
from etude.tokens.joined_bars import barred, can_join, joined, programs_of, with_length
from etude.tokens.musical_changes import MOST_DROPPED, OF_BARS, OF_SCORES, changed_score, signed_strength, token_map
from etude.tokens.row_documents import RowDocument, documents_of_rows, mapped, places, repacked

MOST_LEVEL, MOST_TILT, MOST_NOISE, MOST_MASKED = 0.3, 0.3, 0.1, 0.4  # of normalised mels, about -1 to 1
OF_MELS = ("level", "tilt", "noise", "mask_bands", "mask_frames")
CHANGED_LABELS = {"transpose": "key", "tempo": "tempo_bpm"}


class RandAugment(Technique):
    """Applies `num` operations to each training example, drawn with replacement; `magnitude` is their largest strength.

    Of scores: transpose (up to 6 semitones either way; kept where a note would leave the range), tempo (up to 1.5 times as fast
    or slow), velocity (up to 4 bins), drop_bars (up to half of them), swap_bars (two neighbours but the last change places). Of
    mels: level and tilt (up to 0.3 of the normalised scale), noise (up to a tenth of it), mask_bands and mask_frames (an interval
    of up to 40 % gets the example's mean). These are the limits at magnitude 1; the strength of each operation is uniform below.

    A language model learns the changed music, token by token, in packed rows as before: a map of tokens changes inputs and
    targets alike, a key control follows a transposition and a tempo control the tempo. Bars keep their instruments, and a control
    of the length follows drop_bars. The first bar (with the tempo), the last one (the ending), and pieces that would lose an
    instrument stay as they are. So do the bars of pieces with holes (`data.infill`), which are transposed and the like with their
    holes. Other schemes than REMI and the grid of four voices, and REMI with a plan of its bars, have no operations on bars.

    When to use: classifiers that overfit, and language models on little music. What `data.transpose` and the like do stays as it
    is and adds to this. Suggested: num 2, magnitude 0.5. A grader may hear level, tilt and noise as defects: give it other
    operations.

    Args:
        num: operations for each example, at least 1. magnitude: in [0, 1]; 0 changes nothing but the order of bars.
        operations: those to draw from; None for all that fit the data.
        seed: of the draws.

    Raises:
        ValueError: an option out of its range; in setup, a task that is neither a classifier nor a language model, an operation
            for other data, without effect, or that would change a label, such as the key.

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
        if not isinstance(pl_module, ClassifiesInputs | PredictsTokens):
            raise ValueError(
                f"technique randaugment is for classifiers and language models, and {type(pl_module).__name__} is neither; "
                "remove it from technique=[...], or set data.transpose and the like"
            )
        self._chosen = self.fitting(pl_module)

    def fitting(self, task: ClassifiesInputs | PredictsTokens) -> tuple[str, ...]:
        """Returns the operations that are drawn for a task. Raises: ValueError for one that does not fit it."""
        known, kind = OF_SCORES if isinstance(task, Tokenized) else OF_MELS, type(task).__name__
        unfit = _unfit(task)
        if self.operations is None:
            return tuple(name for name in known if name not in unfit)
        for name in self.operations:
            if name not in known:
                raise ValueError(f"technique randaugment: {kind} has no {name}; choose among {', '.join(known)}")
            if name in unfit:
                raise ValueError(f"technique randaugment: {name} {unfit[name]} of this {kind}; leave it out")
        return self.operations

    def transform_batch(self, task: Task, batch: Batch) -> Batch:
        draws = self.generator(task.batches_trained * 65_536 + task.global_rank)
        assert isinstance(task, ClassifiesInputs | PredictsTokens)
        names = self._chosen or self.fitting(task)
        if isinstance(task, PredictsTokens):
            return self._music(task.tokenizer, batch, names, draws)
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

    def _music(self, tokenizer: Any, batch: Batch, names: tuple[str, ...], draws: torch.Generator) -> Batch:
        """Changes each document of packed rows: first the tokens, one by one, then the order of the bars."""
        documents = documents_of_rows(batch, tokenizer)
        chosen = [[names[i] for i in torch.randint(len(names), (self.num,), generator=draws).tolist()] for _ in documents]
        tables = [self._table(tokenizer, each, mine, draws) for each, mine in zip(documents, chosen, strict=True)]
        if tokenizer.base_size == len(tokenizer):
            batch = mapped(batch, documents, tables)
        else:
            batch = repacked(
                batch, tokenizer, documents,
                [_merged_anew(tokenizer, each, table) for each, table in zip(documents, tables, strict=True)],
            )  # fmt: skip
        of_place = dict(zip(places(documents), chosen, strict=True))
        documents = documents_of_rows(batch, tokenizer)  # with byte pairs, the last ones of a row may be gone
        moved = [
            self._bars(tokenizer, each, of_place[place], draws) for each, place in zip(documents, places(documents), strict=True)
        ]
        return repacked(batch, tokenizer, documents, moved)

    def _table(self, tokenizer: Any, document: RowDocument, names: list[str], draws: torch.Generator) -> np.ndarray | None:
        """The map of base ids that all of a document's operations on single tokens make together."""
        ids, table = tokenizer.expand(document.ids[document.ids >= 0]), np.arange(tokenizer.base_size)
        for name in names:
            if name in OF_BARS:
                continue
            change = token_map(name, tokenizer, signed_strength(self.magnitude, draws))
            if (change[ids] >= 0).all():
                ids, table = change[ids], np.where(table >= 0, change[table], -1)
        return None if (table == np.arange(len(table))).all() else table

    def _bars(self, tokenizer: Any, document: RowDocument, names: list[str], draws: torch.Generator) -> np.ndarray | None:
        """The sequence of a document after its operations on bars; None if it stays as it is."""
        mine = [name for name in names if name in OF_BARS]
        music = barred(document, tokenizer) if mine else None
        if music is None:
            return None
        bars = list(range(len(music)))
        for name in mine:
            movable = len(bars) - 1 - music.first
            if name == "swap_bars" and movable >= 2:
                at = music.first + int(torch.randint(movable - 1, (), generator=draws))
                bars[at], bars[at + 1] = bars[at + 1], bars[at]
            elif name == "drop_bars":
                dropped = min(movable, round(MOST_DROPPED * abs(signed_strength(self.magnitude, draws)) * len(bars)))
                gone = music.first + torch.randperm(movable, generator=draws)[:dropped]
                bars = [bar for place, bar in enumerate(bars) if place not in gone.tolist()]
        if bars == list(range(len(music))) or programs_of(music, bars) != programs_of(music, range(len(music))):
            return None
        ids = joined(music, [(music, 0, music.first), *((music, bar, bar + 1) for bar in bars[music.first :])])
        whole = len(bars) if document.begins and document.ends else None
        return with_length(ids, tokenizer, change=len(bars) - len(music), whole=whole)

    def state_dict(self) -> dict[str, Any]:
        return {}


def _unfit(task: ClassifiesInputs | PredictsTokens) -> dict[str, str]:
    """Operations that don't fit a task, with the reason."""
    found: dict[str, str] = {}
    if isinstance(task, ClassifiesInputs):
        found = {name: f"would change the label {label}" for name, label in CHANGED_LABELS.items() if label in task.labels}
    if not isinstance(task, Tokenized):
        return found
    tokenizer: Any = task.tokenizer
    if isinstance(task, PredictsTokens):
        if not can_join(tokenizer):
            found |= dict.fromkeys(OF_BARS, "needs tokens of REMI without plans, or four voices, instead of those")
    elif tokenizer.base_size != len(tokenizer):  # the maps of tokens are those without byte pairs
        maps = (name for name in OF_SCORES if name not in (*OF_BARS, *found))
        found |= dict.fromkeys(maps, "is not defined on the byte pairs")
    for name, strength in (("tempo", 1.0), ("velocity", 1.0)):
        body = token_map(name, tokenizer, strength)[tokenizer.first_body :]
        if name not in found and (body == np.arange(tokenizer.first_body, tokenizer.base_size)).all():
            found[name] = "changes nothing in the tokens"
    return found


def _merged_anew(tokenizer: Any, document: RowDocument, table: np.ndarray | None) -> np.ndarray | None:
    """The ids of a document with byte pairs after a map of base ids; None if it stays as it is."""
    if table is None or not document.plain:
        return None
    merged: np.ndarray = tokenizer.compress(table[tokenizer.expand(document.ids)].astype(np.int32))
    return merged.astype(np.int64)


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


def _level(mel_mf: Tensor, magnitude: float, draws: torch.Generator) -> Tensor:
    return mel_mf + MOST_LEVEL * signed_strength(magnitude, draws)


def _tilt(mel_mf: Tensor, magnitude: float, draws: torch.Generator) -> Tensor:
    slope = torch.linspace(-1, 1, mel_mf.shape[0], device=mel_mf.device)[:, None]
    return mel_mf + MOST_TILT * signed_strength(magnitude, draws) * slope


def _noise(mel_mf: Tensor, magnitude: float, draws: torch.Generator) -> Tensor:
    deviation = MOST_NOISE * abs(signed_strength(magnitude, draws))
    return mel_mf + deviation * torch.randn(mel_mf.shape, generator=draws).to(mel_mf)


def _masked(mel_mf: Tensor, magnitude: float, draws: torch.Generator, axis: int) -> Tensor:
    size = mel_mf.shape[axis]
    width = round(MOST_MASKED * abs(signed_strength(magnitude, draws)) * size)
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
