"""Technique musical_domain: loss terms from music theory (label smoothing, voice leading, transposition equivariance)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.core.batch import Batch, own_inputs
from etude.core.protocols import PredictsTokens, Varies
from etude.core.task import Task
from etude.core.technique import Technique
from etude.losses import musical
from etude.tokens.classes import DURATION, TIME, token_classes
from etude.tokens.satb import SatbGrid
from etude.tokens.tokenizer import Tokenizer

SHIFTS = tuple(s for s in range(-6, 7) if s)


class MusicalDomain(Technique):
    """Adds loss terms from music theory to those of a language model. A term with weight 0 is not computed.

    - `musical_smoothing`: label smoothing towards musically related tokens. A share `smoothing` of the target probability goes
      to them: for a pitch, to its octave, its fifth and near notes of the piece's scale (the major scale that contains most of
      its notes); for a time or duration, to near values on strong metrical positions. The term is CE(smoothed target) -
      CE(target), so its sum with the task's own term is the smoothed cross-entropy.
    - `musical_voices` (four voices on a grid): the expected leap beyond a fifth, and the expected crossing of the next higher
      voice, in octaves, given the true previous notes.
    - `musical_parallels` (likewise): the probability of a parallel fifth or octave with each higher voice.
    - `musical_equivariance`: KL between the transposed prediction and the prediction for the transposed music. The shift is
      random, up to a tritone, within the tokenizer's range. It needs a second forward pass every `equivariance_every` batches.

    `transpose`, `tempo_scale` and `velocity_shift` replace the augmentation ranges of the data. None of them moves an onset
    within its bar, so swing and syncopation are preserved.

    When to use: little data of one genre. The presets genre=classical, jazz, pop, electronic and folk set the weights.
    Source: Szegedy et al. 2016 (label smoothing); Huron 2001 and Fux 1725 for the rules.

    Args:
        smoothing: share of the target probability that is redistributed, in [0, 1).
        voices, parallels, equivariance: weights, 0 or more.
        equivariance_every: number of batches from one computation of that term to the next, at least 1.
        transpose: [lowest, highest] in semitones. tempo_scale: [lowest, highest] factor. velocity_shift: bins either way.
            None: as set for the data.
        seed: of the random shifts.

    Raises:
        ValueError: an option is out of its range; in setup, the task has no tokenizer and logits, or a term for voices is used
            with another tokenizer than satb.
    """

    def __init__(
        self,
        *,
        smoothing: float = 0.05,
        voices: float = 0.0,
        parallels: float = 0.0,
        equivariance: float = 0.0,
        equivariance_every: int = 4,
        transpose: Sequence[int] | None = None,
        tempo_scale: Sequence[float] | None = None,
        velocity_shift: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if not 0 <= smoothing < 1:
            raise ValueError(f"technique.musical_domain.smoothing is {smoothing}, must be in [0, 1)")
        for name, value in (("voices", voices), ("parallels", parallels), ("equivariance", equivariance)):
            if value < 0:
                raise ValueError(f"technique.musical_domain.{name} is {value}, must be 0 or more")
        if equivariance_every < 1:
            raise ValueError(f"technique.musical_domain.equivariance_every is {equivariance_every}, must be at least 1")
        self.smoothing, self.voices, self.parallels = smoothing, voices, parallels
        self.equivariance, self.equivariance_every = equivariance, equivariance_every
        self.ranges = {"transpose": transpose, "tempo_scale": tempo_scale, "velocity_shift": velocity_shift}

    @property
    def corrections(self) -> dict[str, str]:
        return {"musical_smoothing": "nll"}  # a difference of two cross-entropies

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        kind = type(pl_module).__name__
        tokenizer = pl_module.tokenizer if isinstance(pl_module, PredictsTokens) else None
        if not isinstance(tokenizer, Tokenizer):
            raise ValueError(f"technique musical_domain needs tokens of scores, {kind} has none; remove it from technique=[...]")
        if (self.voices or self.parallels) and not isinstance(tokenizer, SatbGrid):
            raise ValueError(
                f"technique musical_domain: voices and parallels need four voices on a grid, but this {kind} has the tokens of "
                f"{type(tokenizer).__name__}; choose tokenizer=satb, or set both to 0"
            )
        if self.equivariance and tokenizer.base_size != len(tokenizer):
            raise ValueError(
                f"technique musical_domain: equivariance transposes token by token, but {kind} has byte pairs; set "
                "technique.musical_domain.equivariance=0"
            )
        if any(value is not None for value in self.ranges.values()):
            data = trainer.datamodule  # type: ignore[attr-defined]
            if not isinstance(data, Varies):
                raise ValueError(
                    f"technique musical_domain: the data of {kind} ({type(data).__name__}) have no score augmentation; leave "
                    "out transpose, tempo_scale and velocity_shift"
                )
            try:
                data.vary(**self.ranges)
            except ValueError as error:
                raise ValueError(f"technique.musical_domain.{error}") from error
        self._build_tables(tokenizer)

    def _build_tables(self, tokenizer: Tokenizer) -> None:
        classes = token_classes(tokenizer)
        ids = np.flatnonzero(classes.pitch >= 0)
        self._pitch_v = torch.from_numpy(classes.pitch)
        self._pitch_ids, self._pitch_of_ids = torch.from_numpy(ids), torch.from_numpy(classes.pitch[ids])
        neighbours = musical.pitch_smoothing()
        # groups of token ids among which target probability is redistributed, each with a table [scales or 1, rows, ids].
        # For pitches (note onsets, note ends) a row is one of 128 pitches, since byte pairs have several ids of a pitch.
        # For positions and durations a row is an id.
        self._groups: list[tuple[Tensor, Tensor]] = []
        none = torch.zeros(len(classes.kind), dtype=torch.int64)
        self._group_v, self._place_v, self._row_v = none - 1, none.clone(), self._pitch_v.clamp(min=0).long()
        for chosen in (classes.onset, (classes.pitch >= 0) & ~classes.onset):
            table = neighbours[:, :, classes.pitch[chosen]]
            self._add_group(np.flatnonzero(chosen), table / table.sum(-1, keepdim=True).clamp(min=1e-9))
        places = classes.position >= 0
        self._add_group(np.flatnonzero(places), musical.position_smoothing(classes.position[places])[None])
        for kind in (TIME, DURATION):
            mine = (classes.kind == kind) & (classes.units >= 0)
            self._add_group(np.flatnonzero(mine), musical.duration_smoothing(classes.units[mine])[None])

    def _add_group(self, ids: np.ndarray, table: Tensor) -> None:
        if len(ids) > 1:
            self._group_v[ids], self._place_v[ids] = len(self._groups), torch.arange(len(ids))
            if len(table) == 1:
                self._row_v[ids] = torch.arange(len(ids))
            self._groups.append((torch.from_numpy(ids), table))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        device = pl_module.device
        for name in ("_pitch_v", "_pitch_ids", "_pitch_of_ids", "_group_v", "_place_v", "_row_v"):
            setattr(self, name, getattr(self, name).to(device))
        self._groups = [(ids.to(device), table.to(device)) for ids, table in self._groups]

    # --- terms ---

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if self.smoothing:
            terms["musical_smoothing"] = self._smoothing(task.trace, batch)
        if self.voices or self.parallels:
            terms |= self._voice_leading(task, batch)
        if self.equivariance and task.batches_trained % self.equivariance_every == 0:
            terms |= self._equivariance(task, batch)
        return terms

    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        weights = {f"musical_{name}": getattr(self, name) for name in ("voices", "parallels", "equivariance")}
        return {name: weight for name, weight in weights.items() if name in losses}

    def _scales(self, batch: Batch) -> Tensor:
        """Returns the scale of each token's piece, from the notes in its row, as a tonic 0 to 11, [b, t]."""
        documents_bt = batch["documents"].long().clamp(min=0)
        pitch_bt = self._pitch_v[batch["tokens"]]
        sounding = (pitch_bt >= 0) & (batch["documents"] >= 0)
        count = int(documents_bt.max()) + 1
        row = torch.arange(len(documents_bt), device=pitch_bt.device)[:, None].expand_as(pitch_bt)
        place = ((row * count + documents_bt) * 12 + pitch_bt % 12)[sounding]
        classes = torch.bincount(place, minlength=len(documents_bt) * count * 12).view(len(documents_bt), count, 12)
        return musical.best_scale(classes).gather(1, documents_bt)

    def _smoothing(self, trace: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Returns the difference that smoothed targets make to the cross-entropy; log p is taken from the task's trace."""
        targets_m, scale_m = batch["targets"].flatten(), self._scales(batch).flatten()
        logits_mv, nll_m = trace["logits"].flatten(0, 1), trace["token_nll"].flatten()
        group_m = torch.where(targets_m >= 0, self._group_v[targets_m.clamp(min=0)], -1)
        weight_m = trace["token_weight"].flatten() if "token_weight" in trace else None  # of mixtures, which count a part of it
        total = nll_m.new_zeros(())
        for number, (ids, table) in enumerate(self._groups):
            mine_n = torch.nonzero(group_m == number)[:, 0]
            if not len(mine_n):
                continue
            place_n, nll_n = self._place_v[targets_m[mine_n]], nll_m[mine_n]
            given = logits_mv.index_select(0, mine_n).index_select(1, ids).float()
            normaliser_n = nll_n + given.gather(1, place_n[:, None])[:, 0]
            alike = (given - normaliser_n[:, None]).clamp(min=-30)  # ignores impossible tokens: e^-30 is practically 0
            weights = table[scale_m[mine_n] if len(table) > 1 else 0, self._row_v[targets_m[mine_n]]]
            if weight_m is None:
                total = total - nll_n.sum() - (weights * alike).sum()
            else:
                total = total - (weight_m[mine_n] * (nll_n + (weights * alike).sum(-1))).sum()
        difference: Tensor = self.smoothing * total
        return difference if weight_m is not None else difference / (targets_m >= 0).sum().clamp(min=1)

    def _voice_leading(self, task: Task, batch: Batch) -> dict[str, Tensor]:
        """Computes the terms over the voice tokens of the batch, four for each frame, without the first frame of a piece."""
        flat = {name: batch[name].flatten() for name in ("tokens", "documents", "feature_voice")}
        length = batch["tokens"].shape[1]
        place = torch.nonzero(flat["feature_voice"] > 0)[:, 0]
        voice, pitch = flat["feature_voice"][place], self._pitch_v[flat["tokens"][place]]
        piece = place // length * (length + 1) + flat["documents"][place]
        now = torch.arange(4, len(place), device=place.device)
        now = now[(piece[now] == piece[now - 4]) & (voice[now] == voice[now - 4]) & (place[now] % length > 0)]
        if not len(now):
            return {}
        logits = task.trace["logits"].flatten(0, 1)[place[now] - 1].float()
        probability = torch.zeros(len(now), musical.PITCHES, device=logits.device)
        probability = probability.index_add(1, self._pitch_of_ids, F.softmax(logits, -1)[:, self._pitch_ids])
        before, terms = pitch[now - 4], {}
        sounds = before >= 0
        if self.voices:
            leaps = (musical.leap_penalty(probability, before) * sounds).sum()
            lower = (voice[now] > 1) & (pitch[now - 1] >= 0)
            crossings = (musical.crossing_penalty(probability, pitch[now - 1]) * lower).sum()
            terms["musical_voices"] = (leaps + crossings) / len(now)
        if self.parallels:
            total = probability.new_zeros(())
            for higher in (1, 2, 3):
                holds = (
                    (voice[now] > higher) & sounds & (pitch[now - higher] >= 0) & (pitch[(now - 4 - higher).clamp(min=0)] >= 0)
                )
                mine = now[holds & (now >= 4 + higher)]
                chosen = probability[holds & (now >= 4 + higher)]
                found = musical.parallel_probability(chosen, pitch[mine - 4], pitch[mine - 4 - higher], pitch[mine - higher])
                total = total + found.sum()
            terms["musical_parallels"] = total / len(now)
        return terms

    def _equivariance(self, task: Task, batch: Batch) -> dict[str, Tensor]:
        tokenizer: Any = task.tokenizer
        counted = batch["targets"] != -100
        plain = own_inputs(batch)  # mixtures have no transposition: then the pieces themselves are compared
        logits = task.logits(plain) if "embeddings" in batch else task.trace["logits"]  # type: ignore[operator]
        log_p_nv = F.log_softmax(logits[counted].float(), -1)
        order = torch.randperm(len(SHIFTS), generator=self.generator(task.batches_trained)).tolist()
        for number in order:
            table = torch.from_numpy(tokenizer.transposition(SHIFTS[number])).long().to(task.device)
            moved = table[batch["tokens"]]
            if (moved >= 0).all():
                other = task.logits({**plain, "tokens": moved})[counted]  # type: ignore[operator]
                return {"musical_equivariance": musical.equivariance_loss(log_p_nv, other, table).mean()}
        return {}
