"""How sequences are drawn from a model: by sampling, by contrastive search or by beam search, with or without repetition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from symusic import Score
from torch import nn

from etude.models.symbolic.beam import beam_search
from etude.models.symbolic.contrastive import contrastive_search
from etude.models.symbolic.guidance import Guided
from etude.models.symbolic.sampling import generate
from etude.models.symbolic.speculative import random_choice, speculative_sample
from etude.models.symbolic.transformer import Transformer
from etude.tasks.openings import Opening, Rows, drawn_together
from etude.tasks.planning import planned
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.note_stream import NoteStream, StreamedNote
from etude.tokens.repetition import Repetition, RestrainedDecoder
from etude.tokens.tokenizer import Tokenizer

METHODS = ("sample", "contrastive", "beam")
OWN = {
    "guidance": "sample",
    "beams": "beam",
    "beam_groups": "beam",
    "diversity": "beam",
    "alpha": "contrastive",
}  # options of one method alone
CANDIDATES = 4  # of contrastive search, where top_k is not given


@dataclass(frozen=True, kw_only=True)
class Method:
    """How sequences are drawn.

    decoding: sample; contrastive, see `etude.models.symbolic.contrastive`, with top_k candidates; beam, see
        `etude.models.symbolic.beam`. The two searches draw nothing at random: contrastive search gives one sample, beam search
        up to `beams`.
    beams, beam_groups, diversity: of beam search. alpha: of contrastive search.
    no_repeat_ngram, pitch_penalty, pitch_window: see `etude.tokens.repetition.Repetition`.
    guidance: how far what labels change is exaggerated, see `etude.models.symbolic.guidance`; of sampling.
    draft: a smaller language model with the same tokens, for speculative decoding, see `etude.models.symbolic.speculative`; the
        samples have the same distribution. None for none. draft_length: how many tokens it drafts at a time.

    Raises: ValueError for a value out of its range, or an option of another method.
    """

    decoding: str = "sample"
    beams: int = 4
    beam_groups: int = 1
    diversity: float = 0.5
    alpha: float = 0.6
    no_repeat_ngram: int | None = None
    pitch_penalty: float = 1.0
    pitch_window: int = 16
    guidance: float = 0.0
    draft: Any = None
    draft_length: int = 4

    def __post_init__(self) -> None:
        if self.decoding not in METHODS:
            raise ValueError(f"decoding={self.decoding} is unknown; choose one of {', '.join(METHODS)}")
        for option in fields(self):
            method, value = OWN.get(option.name, self.decoding), getattr(self, option.name)
            if method != self.decoding and value != option.default:
                raise ValueError(f"{option.name}={value} has no effect with decoding={self.decoding}; add decoding={method}")
        if self.beams < 1 or self.beam_groups < 1 or self.beams % self.beam_groups:
            raise ValueError(f"beams={self.beams} must be a multiple of beam_groups={self.beam_groups}, both at least 1")
        if not 0 <= self.diversity < float("inf"):
            raise ValueError(f"diversity={self.diversity} must be finite and at least 0; 0.5 is usual")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must lie in [0, 1]; 0.6 is usual, 0 takes the most probable token")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance={self.guidance} must be finite and at least 0; 1.5 is usual, 0 switches it off")
        if self.draft_length < 1:
            raise ValueError(f"draft_length={self.draft_length} must be at least 1 token")
        if self.draft is None and self.draft_length != 4:
            raise ValueError(f"draft_length={self.draft_length} has no effect without a model that drafts; add draft=CHECKPOINT")
        others = {
            "decoding": self.decoding != "sample",
            "pitch_penalty": self.pitch_penalty != 1.0,
            "guidance": self.guidance != 0,
        }
        if self.draft is not None and any(others.values()):
            other = next(f"{name}={getattr(self, name)}" for name, used in others.items() if used)
            raise ValueError(f"draft is for plain sampling and can't be combined with {other}; leave one of them out")
        if self.pitch_window != 16 and self.pitch_penalty == 1.0:
            raise ValueError(f"pitch_window={self.pitch_window} has no effect with pitch_penalty=1; give pitch_penalty=1.5, say")
        assert self.repetition  # checks its values

    @property
    def repetition(self) -> Repetition:
        """How much a track may repeat itself."""
        return Repetition(no_repeat_ngram=self.no_repeat_ngram, pitch_penalty=self.pitch_penalty, pitch_window=self.pitch_window)

    def check(self, model: nn.Module, tokenizer: Tokenizer, *, num_samples: int, key: object, streamed: bool = False) -> None:
        """Checks that samples can be drawn in this way.

        Args:
            key: the key that samples are drawn again for; None for none. streamed: whether notes are passed on one by one.

        Raises: ValueError, in one line that names the remedy.
        """
        if not self.repetition.is_free:
            RestrainedDecoder(tokenizer.decoder(1), tokenizer, self.repetition)
        if streamed:
            NoteStream(tokenizer)
        if streamed and (key is not None or self.decoding == "beam"):
            what = f"key={key} is met by transposing" if key is not None else "decoding=beam finds"
            raise ValueError(f"notes one by one: {what} whole samples; leave it out, or take the samples when they are done")
        if self.guidance and not isinstance(model, Transformer):
            raise ValueError(f"guidance needs a Transformer, this model is a {type(model).__name__}; set guidance=0")
        self._check_draft(model, tokenizer)
        if self.decoding == "sample":
            return
        if not isinstance(model, Transformer):
            raise ValueError(
                f"decoding={self.decoding} needs a Transformer, this model is a {type(model).__name__}; leave it out"
            )
        most = self.beams if self.decoding == "beam" else 1
        if num_samples > most:
            more = "raise beams" if self.decoding == "beam" else "take decoding=sample for more"
            raise ValueError(
                f"decoding={self.decoding} draws nothing at random and gives at most {most} of a prompt, not {num_samples}; "
                f"set num_samples={most}, or {more}"
            )
        if key is not None:
            raise ValueError(f"key={key} is met by drawing again, which decoding={self.decoding} can't; leave one of them out")

    def _check_draft(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        if self.draft is None:
            return
        if self.draft.tokenizer.fingerprint != tokenizer.fingerprint:
            raise ValueError("draft: its tokens are not those of ckpt; give a smaller model of the same data and tokenizer")
        for name, network in (("ckpt", model), ("draft", self.draft.model)):
            if not isinstance(network, Transformer):
                raise ValueError(f"draft needs two Transformers, {name} holds a {type(network).__name__}; leave draft out")

    def scores(
        self, model: nn.Module, openings: Sequence[Opening], count: int, *, tokenizer: Tokenizer, labels: Mapping[str, Any],
        num_bars: int | None, seed: int, device: torch.device, top_k: int | None = None, **how: Any,
    ) -> list[Score]:  # fmt: skip
        """Returns `count` scores for each opening, those of the first opening first; how: as of `draw`.

        Where the tokenizer has plans of bars, those of prompts are drawn first, one for each score; the searches take the most
        probable letters.
        """
        prompts: int | None = None
        if isinstance(tokenizer, MidiTokTokenizer) and tokenizer.can_plan and openings[0].prompt is not None:
            cuts: dict[str, Any] = {"temperature": 0.0}
            if self.decoding == "sample":
                cuts = {"top_k": top_k, **{name: how[name] for name in ("temperature", "top_p", "min_p") if name in how}}
            prompts = len(openings)
            openings = planned(
                model, tokenizer, openings, count, labels=labels, num_bars=num_bars, seed=seed, device=device, **cuts
            )
            if self.decoding == "sample":
                count = 1
            else:  # plans of one prompt are equal
                openings = openings[::count]
        how = {**how, "num_bars": num_bars, "seed": seed, "device": device, "top_k": top_k, "num_prompts": prompts}
        found: dict[int, list[Score]] = {}
        for together in drawn_together(openings, mixed=isinstance(model, Transformer)):
            chosen = [openings[number] for number in together]
            sequences = self.draw(model, chosen, count, tokenizer=tokenizer, labels=labels, **how)
            for number, mine in zip(together, sequences, strict=True):
                tempo = labels.get("tempo_bpm")
                found[number] = [openings[number].completed(s, tokenizer=tokenizer, tempo_bpm=tempo) for s in mine]
        return [score for number in range(len(openings)) for score in found[number]]

    def draw(
        self, model: nn.Module, openings: Sequence[Opening], count: int, *, tokenizer: Tokenizer, labels: Mapping[str, Any],
        num_bars: int | None, seed: int, device: torch.device, on_step: Callable[[int], None] | None = None,
        on_note: Callable[[int, StreamedNote], None] | None = None, top_k: int | None = None, num_prompts: int | None = None,
        **cuts: Any,
    ) -> list[list[list[int]]]:  # fmt: skip
        """Returns `count` sequences for each opening.

        num_prompts: of how many prompts the openings are, equally many of each; None if each is of its own. What is drawn at
            random is the same for each prompt, and differs between the openings of one.
        on_note: called with the number of the row, from 0 for the first sequence of the first opening, and each note as it ends.
        cuts: max_new_tokens, temperature, top_p and min_p; see `etude.models.symbolic.sampling.generate`.
        """
        if self.decoding == "beam":
            return [
                self._searched(model, opening, count, tokenizer, labels, num_bars, device, on_step, top_k=top_k, **cuts)
                for opening in openings
            ]
        prompts = num_prompts or len(openings)
        each = len(openings) // prompts
        if self.draft is not None:
            return [
                self._speculated(model, opening, count, tokenizer, labels, num_bars, device, seed + first % each,
                                 first * count, on_note, on_step=on_step, top_k=top_k, **cuts)
                for first, opening in enumerate(openings)
            ]  # fmt: skip
        candidates = (top_k or CANDIDATES) if self.decoding == "contrastive" else 1
        rows = Rows.of(openings, count * candidates, tokenizer=tokenizer, labels=labels, num_bars=num_bars)
        decoder, penalties = self._restrained(rows.decoder, tokenizer)
        on_tokens = None if on_note is None else _notes(rows.tokens_bt[::candidates].tolist(), tokenizer, on_note)
        common: dict[str, Any] = {"decoder": decoder, "penalties": penalties, "on_step": on_step, "on_tokens": on_tokens, **cuts}
        common["padding_b"] = None if rows.padding_b is None else rows.padding_b[::candidates]
        tokens_bt = rows.tokens_bt[::candidates].to(device)
        if self.decoding == "contrastive":
            assert isinstance(model, Transformer)  # see `check`
            sequences = contrastive_search(model, tokens_bt, top_k=candidates, alpha=self.alpha, **common)
        else:
            generator = torch.Generator().manual_seed(seed)
            if self.guidance:
                assert isinstance(model, Transformer)  # see `check`
                model = Guided(model, weight=self.guidance, num_controls=len(tokenizer.controls(labels)))
            sequences = generate(model, tokens_bt, generator=generator, num_prompts=prompts, top_k=top_k, **common)
        return [sequences[first : first + count] for first in range(0, len(sequences), count)]

    def _speculated(
        self, model: nn.Module, opening: Opening, count: int, tokenizer: Tokenizer, labels: Mapping[str, Any],
        num_bars: int | None, device: torch.device, seed: int, first: int, on_note: Callable[[int, StreamedNote], None] | None,
        **how: Any,
    ) -> list[list[int]]:  # fmt: skip
        """The rows of one opening, one after another, each at its own pace; first: number of the first."""
        assert isinstance(model, Transformer)  # see `check`
        generator, found = torch.Generator().manual_seed(seed), []
        draft = self.draft.model.to(device)
        for row in range(count):
            rows = Rows.of([opening], 1, tokenizer=tokenizer, labels=labels, num_bars=num_bars)
            choose = random_choice(torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator))))
            own = None if on_note is None else partial(_renumbered, on_note, first + row)
            found.append(speculative_sample(
                model, draft, rows.tokens_bt.to(device), decoder=self._restrained(rows.decoder, tokenizer)[0], choose=choose,
                draft_length=self.draft_length, on_tokens=None if own is None else _notes([opening.ids], tokenizer, own), **how,
            ))  # fmt: skip
        return found

    def _searched(
        self, model: nn.Module, opening: Opening, count: int, tokenizer: Tokenizer, labels: Mapping[str, Any],
        num_bars: int | None, device: torch.device, on_step: Callable[[int], None] | None, **cuts: Any,
    ) -> list[list[int]]:  # fmt: skip
        assert isinstance(model, Transformer)  # see `check`
        rows = Rows.of([opening], self.beams, tokenizer=tokenizer, labels=labels, num_bars=num_bars)
        decoder, penalties = self._restrained(rows.decoder, tokenizer)
        found = beam_search(
            model, rows.tokens_bt[:1].to(device), decoder=decoder, penalties=penalties, beams=self.beams, groups=self.beam_groups,
            diversity=self.diversity, on_step=on_step, **cuts,
        )  # fmt: skip
        if len(found) < count:
            raise ValueError(f"decoding=beam found {len(found)} different pieces, not {count}; set num_samples={len(found)}")
        return found[:count]

    def _restrained(self, decoder: Any, tokenizer: Tokenizer) -> tuple[Any, Callable[[], np.ndarray] | None]:
        """The decoder, with its limits of repetition if there are any, and what it takes from logits."""
        if self.repetition.is_free:
            return decoder, None
        restrained = RestrainedDecoder(decoder, tokenizer, self.repetition)
        return restrained, None if self.pitch_penalty == 1.0 else restrained.penalties


def check_guidance(weight: float, num_controls: int, *, dropout: float) -> None:
    """Refuses guidance without labels, or for a model that was always trained with them. Raises: ValueError.

    num_controls: control tokens of what is asked for. dropout: how often they were left out in training.
    """
    if not num_controls:
        raise ValueError(
            f"guidance={weight} strengthens labels, and none is asked for; give genre=, key= or another, or leave it out"
        )
    if not dropout:
        raise ValueError(
            f"guidance={weight} needs a model that was also trained without labels; train one with data.control_dropout=0.2, or "
            "leave guidance out"
        )


def _renumbered(on_note: Callable[[int, StreamedNote], None], number: int, _: int, note: StreamedNote) -> None:
    on_note(number, note)


def _notes(
    prompts: Sequence[Sequence[int]], tokenizer: Tokenizer, on_note: Callable[[int, StreamedNote], None]
) -> Callable[[np.ndarray], None]:
    """Returns a function that takes the sampled tokens of each row and passes notes on; prompts: the tokens before."""
    streams = [NoteStream(tokenizer) for _ in prompts]
    for stream, prompt in zip(streams, prompts, strict=True):
        for token in prompt:
            stream.push(token)

    def push(ids_b: np.ndarray) -> None:
        for row, (stream, token) in enumerate(zip(streams, ids_b.tolist(), strict=True)):
            if (note := stream.push(token)) is not None:
                on_note(row, note)

    return push
