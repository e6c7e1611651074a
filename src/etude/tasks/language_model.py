"""Next-token prediction on symbolic music.

Shapes: b rows, t tokens of a row, v tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from symusic import Score
from torch import Tensor, nn

from etude.core.batch import Batch
from etude.core.checkpoint_files import unusable_checkpoint
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory
from etude.models.symbolic.grid_transformer import GridTransformer
from etude.models.symbolic.transformer import Transformer
from etude.music.passages import Passage
from etude.music.score import bar_ticks
from etude.music.theory import Key
from etude.tasks.decoding_methods import Method, check_guidance
from etude.tasks.encoder_weights import encoder_weights, holds_encoder
from etude.tasks.grid_infilling import check_filling, fill_voices
from etude.tasks.growing_networks import GrowingTask, check_growing, for_labels
from etude.tasks.keyed_samples import samples_in_key
from etude.tasks.openings import Opening
from etude.tasks.passage_memories import own_pieces_left_out, remember_training
from etude.tasks.planning import form_of_prompt, length_asked
from etude.tasks.pooling import each_document, mean_of_documents
from etude.tasks.prompted_samples import prompt_changes, refuse_contradictions
from etude.tasks.rated_scores import nats_per_token
from etude.tasks.remi_infilling import fill_tracks, hole_of
from etude.tasks.token_nll import OTHERS, SHARE, mean_loss, network_inputs, nll_of, token_nll
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.note_stream import StreamedNote
from etude.tokens.requests import check_trained, control_values, request_notes
from etude.tokens.tokenizer import Tokenizer
from etude.tokens.vocabulary_weights import rows_by_token
from etude.tokens.wished_tracks import wishes_of, with_key_of_chords


class LanguageModel(GrowingTask):
    """Trains a decoder-only model on the negative log-likelihood of the next token.

    A batch holds `tokens`, `targets` (-100 where nothing is counted), `documents`, `positions` and `feature_*`, all
    [b, t]; see `etude.data.scores.module`. It may hold `embeddings` [b, t, d], which the network then uses instead of the
    embeddings of the tokens. `trace` holds `logits` [b, t, v] and `token_nll` [b, t], 0 where nothing is counted.

    Args:
        model: builds the network; called with vocab_size and feature_sizes.
        tokenizer: turns scores into tokens; stored in the checkpoint.
        trained_labels: the values of each label in training, as the data gives them; requests for other labels are refused,
            for other values reported. None where they are not known. Stored in the checkpoint.
        infills: whether training pieces had holes, so that the model can fill passages in. Stored in the checkpoint.
        label_dropout: how often labels were left out in training; guidance needs some. Stored in the checkpoint.
        optimizer, scheduler, loss_weights, seed: see `Task`.
    """

    terms: ClassVar[tuple[str, ...]] = ("nll",)
    example_axis: ClassVar[int | None] = 0

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        tokenizer: Tokenizer,
        trained_labels: Mapping[str, Sequence[str]] | None = None,
        infills: bool = False,
        label_dropout: float = 0.0,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler, loss_weights=loss_weights, seed=seed)
        self.tokenizer, self.infills, self.label_dropout, self.traces_tokens = tokenizer, infills, label_dropout, True
        self.trained_labels = None if trained_labels is None else {name: list(map(str, v)) for name, v in trained_labels.items()}
        self.model = model(vocab_size=len(tokenizer), feature_sizes=dict(tokenizer.feature_sizes))
        if isinstance(self.model, GridTransformer):
            self.model.check_vocabulary(tokenizer.vocab)
        if isinstance(self.model, Transformer) and not self.model.causal:
            raise ValueError(
                "task=language_model predicts the next token, which a network with model.causal=false sees; set it to true"
            )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            check_growing(self, self.model)
            remember_training(self.model, self.tokenizer, self.trainer)

    def logits(self, batch: Batch) -> Tensor:
        """Returns the logits [b, t, v] of each next token."""
        logits: Tensor = self.model(batch["tokens"], **network_inputs(batch))
        return logits

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"nll": mean negative log-likelihood of the counted tokens, in nats}; the class says what `trace` holds."""
        logits = self.logits(batch)
        loss, found = mean_loss(logits, batch)
        self.trace = {"logits": logits, **found}
        return {"nll": loss}

    def mixed_next_tokens(self, targets: Tensor, share: Tensor) -> Batch:
        return {OTHERS: targets, SHARE: share}

    def recompute_trace(self, batch: Batch, trace: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with own_pieces_left_out(self.model):
            logits = self.logits(batch)
        return {"logits": logits, **({"nll": mean_loss(logits, batch)[0]} if OTHERS in batch else {})}

    def token_nll(self, batch: Batch) -> Tensor:
        """Returns the negative log-likelihood of each target [b, t] in nats, 0 where nothing is counted."""
        return token_nll(self.logits(batch), batch["targets"])

    def measures(self) -> tuple[Measure, ...]:
        return (Measure("nll", "nats per token"),)

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns {"nll": negative log-likelihood of the counted tokens}, with each token's [b, t] beside the mean."""
        return {"nll": nll_of(self.logits(batch), batch["targets"])}

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {"embeddings": the tokens' embeddings [b, t, d]}, which `with_inputs` puts back into a batch.

        Raises: ValueError if the network takes no embeddings.
        """
        if not isinstance(self.model, Transformer):
            raise ValueError(f"{type(self.model).__name__} takes notes, not embeddings; for continuous inputs set model=tiny")
        return {"embeddings": batch["embeddings"] if "embeddings" in batch else self.model.embed(batch["tokens"])}

    def with_inputs(self, batch: Batch, inputs: Mapping[str, Tensor]) -> Batch:
        """Returns the batch with these embeddings instead of those of its tokens; the targets stay as they are."""
        return {**batch, "embeddings": inputs["embeddings"]}

    def features(self, batch: Batch) -> Tensor:
        """Returns one row for each document of the batch, [n, d]: the last hidden states, averaged over its counted tokens.

        Documents are in the order of the rows, and within a row in the order of time; `documents` gives the piece of each.
        """
        hidden = self._network().hidden(batch["tokens"], **network_inputs(batch))
        return mean_of_documents(hidden, batch, batch["targets"] != -100)

    def documents(self, batch: Batch, name: str = "piece") -> Tensor:
        """Returns the batch's entry `name`, such as `piece` or `label_genre`, once for each document: [n]."""
        return each_document(batch, name)

    def _network(self) -> Transformer | GridTransformer:
        if isinstance(self.model, Transformer | GridTransformer):
            return self.model
        raise ValueError(f"{type(self.model).__name__} has no method `hidden`, which features need; take one of Etude's networks")

    @torch.inference_mode()
    def sample(
        self,
        *,
        num_samples: int = 1,
        labels: Mapping[str, Any] | None = None,
        prompt: Score | Sequence[Score] | None = None,
        num_bars: int | None = None,
        max_new_tokens: int = 2048,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        transpose_to_key: bool = True,
        on_step: Callable[[int], None] | None = None,
        on_round: Callable[[int, int, int], None] | None = None,
        on_note: Callable[[int, StreamedNote], None] | None = None,
        **method: Any,
    ) -> list[Score]:
        """Samples pieces from the model. The grammar of the tokenizer ensures that every sample can be decoded.

        With REMI tokens, programs and metre are enforced by the grammar; a prompt keeps its notes, names and marks, and only its
        tracks go on unless programs are asked for. Tempo is set to what is asked for. A key that is asked for without a prompt
        is enforced, see `samples_in_key`.

        Args:
            labels: requested properties: genre, key ("G major"), tempo_bpm, metre ("4/4"), programs; and what is asked of the
                notes: chords, chords_strict, register, polyphony, density, see `etude.tokens.wishes`; or of a plan of the bars:
                form ("AABA") and form_bars, see `etude.music.form.parse_form`.
            prompt: a score to continue; every sample begins with it. Of several scores, each is continued as it would be alone,
                in one batch (up to rounding); the samples of the first come first.
            num_bars: length of a sample, the prompt included; None lets the model decide.
            temperature, top_k, top_p, min_p: see `etude.models.symbolic.sampling.generate`.
            seed: the same seed gives the same samples.
            transpose_to_key: whether to enforce a key; False leaves it to the model.
            on_step: called with the number of tokens drawn so far.
            on_round: called before each round of drawing that a key takes, see `samples_in_key`.
            on_note: called with the number of the sample and each of its notes, as soon as it is drawn (REMI tokens).
            method: decoding, beams, no_repeat_ngram, ...: see `etude.tasks.decoding_methods.Method`.

        Raises:
            ValueError: the tokenizer does not know a label (the message lists the valid ones), the model was not trained with
                it, the prompt can't be represented or is longer than `num_bars`, or a method that can't draw this.
        """
        prompts = [prompt] if prompt is None or isinstance(prompt, Score) else list(prompt)
        for each in prompts:
            self.check_request(labels or {}, prompt=each, num_bars=num_bars)
        num_bars = length_asked(self.tokenizer, labels or {}, num_bars)
        asked = with_key_of_chords(self._with_length(labels or {}, num_bars), trained=self.trained_labels)
        controls = self.tokenizer.controls(asked)
        openings = [Opening.of(each, tokenizer=self.tokenizer, controls=controls) for each in prompts]

        keyed = transpose_to_key and asked.get("key") is not None and prompt is None and asked.get("chords") is None
        self.check_decoding(num_samples=num_samples, labels=asked, prompted=not keyed, streamed=on_note is not None, **method)

        def draw(count: int, seed: int) -> list[Score]:
            return Method(**method).scores(
                self.model, openings, count, tokenizer=self.tokenizer, labels=asked, num_bars=num_bars, seed=seed,
                device=self.device, on_step=on_step, on_note=on_note, top_k=top_k, max_new_tokens=max_new_tokens,
                temperature=temperature, top_p=top_p, min_p=min_p,
            )  # fmt: skip

        was_training = self.training
        self.eval()
        try:
            with for_labels(self.model, asked):
                if keyed:
                    key = Key.parse(str(asked["key"]))
                    return samples_in_key(draw, num_samples=num_samples, key=key, seed=seed, on_round=on_round)
                return draw(num_samples, seed)
        finally:
            self.train(was_training)

    def check_decoding(
        self, *, num_samples: int, labels: Mapping[str, Any], prompted: bool, streamed: bool = False, **method: Any
    ) -> None:
        """Checks that samples can be drawn by a method. Raises: ValueError as `sample` does."""
        if method.get("guidance"):
            asked = with_key_of_chords(labels, trained=self.trained_labels)
            check_guidance(method["guidance"], len(self.tokenizer.controls(asked)), dropout=self.label_dropout)
        Method(**method).check(
            self.model, self.tokenizer, num_samples=num_samples, key=None if prompted else labels.get("key"), streamed=streamed
        )

    def _with_length(self, labels: Mapping[str, Any], num_bars: int | None) -> dict[str, Any]:
        """The labels with a length in bars, if training pieces had one; the decoder keeps to it in any case."""
        known = num_bars is not None and (self.trained_labels is None or self.trained_labels.get("num_bars"))
        return {**labels, "num_bars": num_bars} if known else dict(labels)

    def nats_per_token(
        self, scores: Sequence[Score], *, labels: Mapping[str, Any] | None = None, num_bars: int | None = None
    ) -> list[float]:
        """Returns the negative log-likelihood per token of each score, given labels; see `rated_scores.nats_per_token`."""
        controls = self.tokenizer.controls(self._with_length(labels or {}, num_bars))
        with for_labels(self.model, labels):
            return nats_per_token(self.logits, scores, tokenizer=self.tokenizer, controls=controls, device=self.device)

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        given, mine = super().weights_from(saved, path), self.tokenizer
        own = self.state_dict()
        if holds_encoder(saved):
            return own | encoder_weights(saved, own=own, prefix="model.", tokenizer=mine, path=path)
        weights = {name: w for name, w in given.items() if name in own or not name.startswith("algorithm.")}  # of meta-learning
        if saved["etude"].get("tokenizer_fingerprint") == mine.fingerprint:
            return weights
        try:
            theirs = Tokenizer.from_state(saved["etude"].get("tokenizer"))
        except Exception as error:  # a file may be malformed in any way
            raise unusable_checkpoint(path, error) from error
        return rows_by_token(weights, theirs, own=own, tokenizer=mine, path=path)

    def check_request(self, labels: Mapping[str, Any], *, prompt: Score | None = None, num_bars: int | None = None) -> list[str]:
        """What the model can't be asked exactly, or changes in the prompt, one line each; empty where all is as asked.

        Args: as in `sample`.

        Raises:
            ValueError: what `sample` refuses.
        """
        check_trained(labels, self.trained_labels)
        self.tokenizer.check_request(labels)
        num_bars = length_asked(self.tokenizer, labels, num_bars)
        self.tokenizer.decoder(1, num_bars=num_bars, labels=labels, wishes=wishes_of(self.tokenizer, labels, prompt=prompt))
        notes = request_notes(self.tokenizer, labels, self.trained_labels)
        if prompt is None:
            return notes
        if changed := prompt_changes(self.tokenizer, prompt):
            notes.append(f"of the prompt, this model can't hold all: {'; '.join(changed)}")
        bars = len(bar_ticks(prompt))
        if num_bars is not None and num_bars < bars:
            raise ValueError(f"num_bars is {num_bars}, the prompt alone has {bars} bars; give more, or a shorter prompt")
        refuse_contradictions(labels, prompt)
        return notes + form_of_prompt(self.tokenizer, labels, prompt, num_bars)

    @torch.inference_mode()
    def infill(
        self,
        *,
        prompt: Score,
        passage: Passage,
        num_samples: int = 1,
        labels: Mapping[str, Any] | None = None,
        max_new_tokens: int = 2048,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        on_step: Callable[[int], None] | None = None,
    ) -> list[Score]:
        """Returns copies of a score whose passage has other notes; all else stays as it is, note for note.

        With REMI tokens, the metre of each bar and the tracks that play are enforced by the grammar. A chorale model needs no
        training for it, see `etude.models.symbolic.particles`.

        Args:
            passage: what is replaced.
            labels, temperature, top_k, top_p, min_p, max_new_tokens, seed, on_step: as in `sample`.

        Raises:
            ValueError: the model can't infill, or its tokenizer can't represent the score.
        """
        was_training, fill = self.training, self._infilling()
        self.eval()
        try:
            with for_labels(self.model, labels):
                return fill(
                    self.model, self.tokenizer, prompt, passage, num_samples=num_samples, labels=labels or {}, seed=seed,
                    max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                    on_step=on_step,
                )  # fmt: skip
        finally:
            self.train(was_training)

    def _infilling(self) -> Callable[..., list[Score]]:
        if isinstance(self.tokenizer, MidiTokTokenizer) and self.tokenizer.can_infill and self.infills:
            return fill_tracks
        if isinstance(self.model, GridTransformer):
            return fill_voices
        raise ValueError(
            "infill: this model was not trained to fill passages in; train one with tokenizer=remi data.infill=0.5, or with "
            "model=grid tokenizer=satb for four voices"
        )

    def check_infill(self, prompt: Score, passage: Passage, labels: Mapping[str, Any] | None = None) -> list[str]:
        """What the model does not see of the score, one line each. Raises: ValueError as `infill` does."""
        if self._infilling() is fill_voices:
            check_filling(self.tokenizer, prompt, passage, labels or {})
            return []
        assert isinstance(self.tokenizer, MidiTokTokenizer)
        hole_of(self.tokenizer, prompt, passage)
        wishes_of(self.tokenizer, labels or {}, prompt=prompt)
        changed = prompt_changes(self.tokenizer, prompt)
        return [f"to fill the passage in, the model sees the rest with changes: {'; '.join(changed)}"] if changed else []

    @classmethod
    def constructor_arguments_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor arguments that come from the data, read from a checkpoint: tokenizer and trained labels."""
        tokenizer = Tokenizer.from_state(saved["tokenizer"])
        trained = saved.get("trained_labels")
        if trained is None:  # of an older checkpoint: the labels are known, their values are not
            controls = saved["recipe"].get("data", {}).get("controls")
            trained = None if controls is None else {label: control_values(tokenizer)[label] for label in controls}
        dropout = saved.get("label_dropout", (saved["recipe"].get("data") or {}).get("control_dropout")) or 0.0
        own = {"infills": bool(saved.get("infills", False)), "label_dropout": float(dropout)}
        return {"tokenizer": tokenizer, "trained_labels": trained, **own}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["etude"]["tokenizer"] = self.tokenizer.state_dict()
        checkpoint["etude"]["tokenizer_fingerprint"] = self.tokenizer.fingerprint
        trained = self.trained_labels
        if trained and "genre" in trained:  # phases may have drawn some genres alone
            trained = {**trained, "genre": self.phases.drawn("genre", trained["genre"])}
        checkpoint["etude"]["trained_labels"] = trained
        checkpoint["etude"]["infills"] = self.infills
        checkpoint["etude"]["label_dropout"] = self.label_dropout

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        found = checkpoint["etude"].get("tokenizer_fingerprint")
        if found != self.tokenizer.fingerprint:
            raise ValueError(
                "the checkpoint was trained with another tokenizer or other genres "
                f"(fingerprint {str(found)[:12]}, here {self.tokenizer.fingerprint[:12]}); "
                "give the data= and tokenizer= options of that run, which are in its config.yaml"
            )
