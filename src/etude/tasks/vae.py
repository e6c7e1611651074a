"""Learns a latent vector for each bar of symbolic music, from which bars are written, blended and changed.

Shapes: b rows, t tokens, n bars, z latent size, a attributes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from symusic import Score
from torch import Tensor, nn

from etude.core import lightning
from etude.core.batch import Batch
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory
from etude.losses.variational import kl_from_normal
from etude.models.symbolic.transformer_vae import Posterior, TransformerVae
from etude.music.score import bar_ticks
from etude.tasks.language_model import LanguageModel
from etude.tasks.token_nll import nll_of, token_features
from etude.tokens.changes import bar_lengths, first_metre, first_tempo
from etude.tokens.grammar import BOS
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_vocabulary import BAR, PITCH
from etude.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)
ATTRIBUTES = ("density", "pitch")  # logarithm of the notes of a bar plus one; their mean MIDI pitch
LARGEST = 4.0  # standardised attributes are clipped to so many standard deviations
PRIOR_BARS = 256  # bars that are drawn from the prior; longer pieces use them again
ACTIVE = 0.01  # variance of a latent's mean between bars from which it counts as active
REMEMBERED = 0.99  # share of the running moments that each batch leaves as they are


class Vae(LanguageModel):
    """Trains a `TransformerVae` on the evidence lower bound: the likelihood of the tokens, and the divergence from the prior.

    The weight of the divergence grows from 0 to `beta` over the first `ramp` of each of `cycles` equal parts of the run, and
    each latent has `free_bits` nats for nothing; both keep the decoder from ignoring the latents (posterior collapse), which is
    watched (`val/active_units`) and told. Both losses are in nats per token. Beside a bar's latent the decoder is told the bar's
    `ATTRIBUTES`, so that they can be changed alone.

    Args:
        beta: weight of the divergence at the end of each cycle, at least 0; 1 is the bound itself.
        cycles: number of cycles, at least 1. ramp: share of a cycle in which the weight grows, in (0, 1].
        free_bits: nats of divergence of each latent dimension of a bar that cost nothing, at least 0.
        All others: see `LanguageModel`.

    Raises: ValueError for a value out of its range, another network or a tokenizer without bar tokens.

    Source: Kingma and Welling 2014; Kingma et al. 2016 (free bits); Fu et al. 2019 (cycles); Burda et al. 2016 (active units);
    Wu and Yang 2021 (attributes beside the latents).
    """

    terms: ClassVar[tuple[str, ...]] = ("nll", "kl")
    pitches: Tensor
    moments: Tensor

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        tokenizer: Tokenizer,
        beta: float = 0.1,
        cycles: int = 2,
        ramp: float = 0.5,
        free_bits: float = 0.25,
        trained_labels: Mapping[str, Sequence[str]] | None = None,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model=model, tokenizer=tokenizer, trained_labels=trained_labels, optimizer=optimizer, scheduler=scheduler,
            loss_weights=loss_weights, seed=seed,
        )  # fmt: skip
        if beta < 0 or cycles < 1 or not 0 < ramp <= 1 or free_bits < 0:
            raise ValueError(
                f"task.beta={beta} and task.free_bits={free_bits} must be at least 0, task.cycles={cycles} at least 1, "
                f"task.ramp={ramp} in (0, 1]"
            )
        self.beta, self.cycles, self.ramp, self.free_bits = beta, cycles, ramp, free_bits
        if not isinstance(self.model, TransformerVae):
            raise ValueError(f"task=vae trains model=transformer_vae, not {type(self.model).__name__}; set model=transformer_vae")
        if not isinstance(self.tokenizer, MidiTokTokenizer) or self.tokenizer.scheme != "REMI":
            raise ValueError("task=vae needs tokens that name bars; set tokenizer=remi")
        if self.tokenizer.can_plan:
            raise ValueError("task=vae has latents of bars in place of a plan; set tokenizer.form=null")
        kinds = torch.from_numpy(self.tokenizer.table.kind)
        self.model.set_bar_ids((kinds == BAR).nonzero().flatten().tolist())
        numbers = torch.from_numpy(self.tokenizer.table.number)
        self.register_buffer("pitches", torch.where(kinds == PITCH, numbers, -1), persistent=False)  # of each token
        self.register_buffer("moments", torch.zeros(3, len(ATTRIBUTES)))  # sums of 1, x and x^2 of bars, the latest most

    # --- training ---

    @property
    def kl_weight(self) -> float:
        """The weight of the divergence at this step."""
        trainer = lightning.trainer_of(self)
        total = -1 if trainer is None else trainer.max_steps
        if total < 1:
            return self.beta
        place = self.steps_trained * self.cycles / total % 1.0
        return self.beta * min(1.0, place / self.ramp)

    def posterior(self, batch: Batch) -> Posterior:
        """Returns what the encoder says of the bars of a batch."""
        return self._vae.encode(
            batch["tokens"], documents_bt=batch["documents"], positions_bt=batch["positions"], features=token_features(batch)
        )

    @property
    def _vae(self) -> TransformerVae:
        assert isinstance(self.model, TransformerVae)
        return self.model

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the reconstruction and the weighted divergence, in nats per counted token; `trace` as of `LanguageModel`."""
        found, targets = self.posterior(batch), batch["targets"]
        if self.training and not self.in_losses_at:
            self._remember(batch, found)
        noise = torch.randn_like(found.mean) if self.training else 0.0
        logits = self._decoded(batch, found, found.mean + noise * (found.log_variance / 2).exp())
        token_nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
        self.trace = {"logits": logits, "token_nll": token_nll.view_as(targets)}
        count = (targets != -100).sum().clamp(min=1)
        divergence = kl_of_dimensions(found)[found.real].mean(0).clamp(min=self.free_bits).sum() * found.real.sum()
        return {"nll": token_nll.sum() / count, "kl": self.kl_weight * divergence / count}

    def logits(self, batch: Batch) -> Tensor:
        """Returns the logits [b, t, v] of each next token, given the mean latents of the bars."""
        found = self.posterior(batch)
        return self._decoded(batch, found, found.mean)

    def _decoded(self, batch: Batch, found: Posterior, latents: Tensor) -> Tensor:
        return self._vae.decode(
            batch["tokens"], torch.cat([latents, self.attributes(batch, found)], dim=1), found.bar,
            documents_bt=batch["documents"], positions_bt=batch["positions"], features=token_features(batch),
        )  # fmt: skip

    # --- measuring ---

    def measures(self) -> tuple[Measure, ...]:
        return (
            Measure("neg_elbo", "nats per token"), Measure("nll", "nats per token"), Measure("kl", "nats per token"),
            Measure("active_units", "share of the latents", higher_is_better=True),
        )  # fmt: skip

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """The bound, its two parts at the mean latents, and the share of latents that vary between the bars of a batch."""
        found = self.posterior(batch)
        nll = nll_of(self._decoded(batch, found, found.mean), batch["targets"])
        kl = kl_of_dimensions(found)[found.real].sum() / nll.count.clamp(min=1)
        bars = found.mean[found.real]
        active = (bars.var(0) > ACTIVE).float().mean() if len(bars) > 1 else bars.new_zeros(())
        return {
            "neg_elbo": Measured(nll.mean + kl, nll.count), "nll": nll, "kl": Measured(kl, nll.count),
            "active_units": Measured(active, nll.count),
        }  # fmt: skip

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking or "active_units" not in self.validation_means:
            return
        mean: Any = self.validation_means["active_units"]
        active = round(float(mean.compute()) * self._vae.latent_dim)
        if active == 0:
            log.warning(
                f"step {self.steps_trained}: posterior collapse, none of {self._vae.latent_dim} latents differs between bars; "
                "raise task.free_bits or model.token_dropout, or lower task.beta"
            )

    # --- attributes ---

    def attributes(self, batch: Batch, found: Posterior) -> Tensor:
        """Returns `ATTRIBUTES` of each bar, [n, 2], in standard deviations from training's mean; 0 for the pitch of no notes."""
        raw, has_notes = self._raw_attributes(batch, found)
        count, mean = self.moments[0].clamp(min=1), self.moments[1] / self.moments[0].clamp(min=1)
        deviation = (self.moments[2] / count - mean**2).clamp(min=1e-6).sqrt()
        standard = ((raw - mean) / deviation).clamp(-LARGEST, LARGEST)
        return torch.stack([standard[:, 0], torch.where(has_notes, standard[:, 1], 0.0)], dim=1)

    def _raw_attributes(self, batch: Batch, found: Posterior) -> tuple[Tensor, Tensor]:
        """Returns the attributes as they are, [n, 2], and whether a bar has notes, [n]."""
        pitch = self.pitches[batch["tokens"]].flatten()
        owner, note = found.bar.flatten(), pitch >= 0
        notes = torch.bincount(owner[note], minlength=len(found.mean)).float()
        heights = notes.new_zeros(len(found.mean)).index_add(0, owner[note], pitch[note].float())
        return torch.stack([notes.log1p(), heights / notes.clamp(min=1)], dim=1), notes > 0

    @torch.no_grad()
    def _remember(self, batch: Batch, found: Posterior) -> None:
        raw, has_notes = self._raw_attributes(batch, found)
        counted = torch.stack([found.real, found.real & has_notes], dim=1).float()
        self.moments.mul_(REMEMBERED).add_(torch.stack([counted.sum(0), (counted * raw).sum(0), (counted * raw**2).sum(0)]))

    # --- generating ---

    @torch.inference_mode()
    def encode_score(self, score: Score) -> Tensor:
        """Returns the code of each bar of a score, its mean latent and attributes, [bars, z + 2].

        Raises: ValueError as `Tokenizer.encode` does.
        """
        body = self.tokenizer.encode(score)
        features = self.tokenizer.features(body)
        batch = {
            "tokens": torch.tensor([[BOS, *body.tolist()]], device=self.device),
            "documents": torch.zeros(1, len(body) + 1, dtype=torch.long, device=self.device),
            "positions": torch.arange(len(body) + 1, device=self.device)[None],
            **{f"feature_{name}": torch.tensor([[0, *values.tolist()]], device=self.device) for name, values in features.items()},
        }
        was_training = self.training
        self.eval()
        try:
            found = self.posterior(batch)
            return torch.cat([found.mean, self.attributes(batch, found)], dim=1)
        finally:
            self.train(was_training)

    def sample(
        self, *, num_samples: int = 1, prompt: Score | Sequence[Score] | None = None, seed: int = 0,
        codes: Tensor | None = None, **options: Any,
    ) -> list[Score]:  # fmt: skip
        """Samples pieces as `LanguageModel.sample` does, from latents of the prior; those of a prompt's bars are the prompt's.

        codes: [num_samples, bars, z + 2], instead of those of the prior, whose attributes are those of one usual bar a piece.
        """
        if prompt is not None and not isinstance(prompt, Score):  # each has its own latents
            each = [self.sample(num_samples=num_samples, prompt=one, seed=seed, **options) for one in prompt]
            return [score for scores in each for score in scores]
        if codes is None:
            generator = torch.Generator().manual_seed(seed)
            latents = torch.randn(num_samples, PRIOR_BARS, self._vae.latent_dim, generator=generator)
            attributes = torch.randn(num_samples, 1, len(ATTRIBUTES), generator=generator).expand(-1, PRIOR_BARS, -1)
            codes = torch.cat([latents, attributes], dim=2).to(self.device)
            if prompt is not None:
                codes = torch.cat([self.encode_score(prompt).expand(num_samples, -1, -1), codes], dim=1)
        with self._vae.generating_from(codes):
            return super().sample(num_samples=num_samples, prompt=prompt, seed=seed, **options)

    def interpolate(self, first: Score, last: Score, *, steps: int, seed: int = 0, **options: Any) -> list[Score]:
        """Returns `steps` pieces whose latents lead from those of one score to those of another, bar by bar, both ends included.

        The latents lie on great circles between those of the scores, the attributes on lines. All pieces are drawn with the same
        random numbers, at the tempo between those of the scores, by the instruments of both.

        options: as of `sample`, without labels, prompt and num_bars.
        Raises: ValueError if the scores have other metres, or steps is below 2.
        """
        self.check_interpolation(first, last, steps=steps)
        bars = min(len(bar_ticks(first)), len(bar_ticks(last)))
        ends = [self.encode_score(score)[:bars] for score in (first, last)]
        tempos = [first_tempo(score) for score in (first, last)]
        programs = sorted({track.program for score in (first, last) for track in score.tracks if not track.is_drum})
        pieces = []
        for step in range(steps):
            share = step / (steps - 1)
            labels = {
                "metre": "{}/{}".format(*first_metre(first)), "programs": programs,
                "tempo_bpm": tempos[0] ** (1 - share) * tempos[1] ** share,
            }  # fmt: skip
            size = self._vae.latent_dim
            latents = between(ends[0][:, :size], ends[1][:, :size], share)
            attributes = (1 - share) * ends[0][:, size:] + share * ends[1][:, size:]
            codes = torch.cat([latents, attributes], dim=1)[None]
            pieces += self.sample(num_samples=1, labels=labels, num_bars=bars, seed=seed, codes=codes, **options)
        return pieces

    def check_interpolation(self, first: Score, last: Score, *, steps: int) -> None:
        """Raises: ValueError as `interpolate` does."""
        if steps < 2:
            raise ValueError(f"steps is {steps}, must be at least 2, for the two scores themselves")
        if bar_lengths(first) != bar_lengths(last):
            told = " and ".join("{}/{}".format(*first_metre(score)) for score in (first, last))
            raise ValueError(f"interpolate: the scores have other metres ({told}); give two of one metre")

    def check_attribute(self, attribute: str) -> None:
        """Raises: ValueError for an attribute that is not one of `ATTRIBUTES`."""
        if attribute not in ATTRIBUTES:
            raise ValueError(f"slide has {attribute!r}; give some of {', '.join(ATTRIBUTES)}, as in slide={{density:1.5}}")

    def slide(
        self, score: Score, changes: Mapping[str, float], *, num_samples: int = 1, seed: int = 0, **options: Any
    ) -> list[Score]:
        """Returns pieces whose bars have the latents of a score, and attributes moved by numbers of standard deviations.

        options: as of `sample`, without labels, prompt and num_bars. Raises: ValueError as `check_attribute` does.
        """
        codes = self.encode_score(score).clone()
        for attribute, amount in changes.items():
            self.check_attribute(attribute)
            codes[:, self._vae.latent_dim + ATTRIBUTES.index(attribute)] += amount
        programs = sorted({track.program for track in score.tracks if not track.is_drum})
        labels = {"metre": "{}/{}".format(*first_metre(score)), "programs": programs, "tempo_bpm": first_tempo(score)}
        return self.sample(
            num_samples=num_samples, labels=labels, num_bars=len(codes), seed=seed, codes=codes.expand(num_samples, -1, -1),
            **options,
        )  # fmt: skip


def kl_of_dimensions(found: Posterior) -> Tensor:
    """Returns the divergence of each bar's posterior from the prior N(0, 1) by dimension, in nats, [n, z].

    Source: Kingma and Welling 2014, eq. 10.
    """
    return kl_from_normal(found.mean, found.log_variance)


def between(first: Tensor, last: Tensor, share: float) -> Tensor:
    """Returns the point at a share of the great circle between vectors [..., z]; their lengths are interpolated.

    Source: Shoemake 1985 (slerp); White 2016, for latents.
    """
    lengths = [vector.norm(dim=-1, keepdim=True).clamp(min=1e-8) for vector in (first, last)]
    units = [vector / length for vector, length in zip((first, last), lengths, strict=True)]
    angle = (units[0] * units[1]).sum(-1, keepdim=True).clamp(-1, 1).arccos().clamp(1e-4, math.pi - 1e-4)
    turned = (((1 - share) * angle).sin() * units[0] + (share * angle).sin() * units[1]) / angle.sin()
    result: Tensor = turned * (lengths[0] ** (1 - share) * lengths[1] ** share)
    return result
