"""Learns to tell new classes of scores from a few examples: metric learning and meta-learning on episodes.

Shapes: b rows, t tokens, d width, s pieces of a support, q queries, n ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core.batch import Batch
from etude.core.gradients import outputs_at
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory, Task
from etude.models.symbolic.transformer import Transformer
from etude.objectives.alignment import Alignment
from etude.objectives.inner_loop import InnerLoop, Weights
from etude.tasks.encoder_weights import encoder_weights
from etude.tasks.episode_loops import (
    ALGORITHM,
    adapted,
    cluster_measures,
    cluster_shares,
    differentiable_twice,
    episode_loss,
    episodes,
)
from etude.tasks.melodies import Melodies
from etude.tasks.pooling import each_document, mean_of_documents
from etude.tasks.token_nll import token_features
from etude.tokens.tokenizer import Tokenizer

ABOUT = ("episode", "way", "query")  # entries of a batch of episodes
PLAIN = "support"  # the term of a batch that is no episode: the cross-entropy of its ways


class FewShot(Task):
    """Trains an encoder on episodes, so that it tells new classes apart from a few pieces of each.

    A batch holds one piece in each row, [b, t]: `tokens`, `documents`, `positions`, `piece`, `feature_*`, and `episode`, `way`
    and `query` as in `etude.data.scores.episodes`. A piece's vector is the mean of its hidden states. The term is `query`, the
    mean cross-entropy of the queries in nats; with algorithm=reptile `distance`.

    Metric algorithms compare vectors (prototypical, matching), or notes and vectors (alignment). Inner loops (maml, fomaml,
    reptile) adapt the encoder and a linear head of `ways` outputs to the support of each episode; they work with the number of
    ways they were trained with.

    Args:
        model: builds the encoder; called with vocab_size and feature_sizes. Set model.causal=false.
        algorithm: called with dim; see `etude.objectives.prototypical`, `matching`, `alignment`, `maml` and `reptile`.
        tokenizer, ways: of the data; stored in the checkpoint.
        optimizer, scheduler, loss_weights, seed: see `Task`.

    Raises: ValueError for a network that is no Transformer.
    """

    example_axis: ClassVar[int | None] = None  # a row of an episode means nothing without the others

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        algorithm: Callable[..., nn.Module],
        tokenizer: Tokenizer,
        ways: int,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler, loss_weights=loss_weights, seed=seed)
        self.check_data({"ways": ways})
        self.tokenizer, self.ways = tokenizer, ways
        plain = differentiable_twice(algorithm)
        encoder = model(vocab_size=len(tokenizer), feature_sizes=dict(tokenizer.feature_sizes), **plain)
        if not isinstance(encoder, Transformer):
            raise ValueError(f"task=few_shot trains a Transformer, not {type(encoder).__name__}; set model=tiny")
        self.encoder = encoder
        self.algorithm = algorithm(dim=encoder.dim)
        self.melodies = Melodies(tokenizer, notes=self.algorithm.notes) if isinstance(self.algorithm, Alignment) else None
        self.head = nn.Linear(encoder.dim, ways) if isinstance(self.algorithm, InnerLoop) else None
        if isinstance(self.algorithm, InnerLoop):
            self.algorithm.attach(dict(self.named_parameters()))
        self.terms = (self.algorithm.term if isinstance(self.algorithm, InnerLoop) else "query",)  # type: ignore[misc]

    @classmethod
    def check_data(cls, options: Mapping[str, Any]) -> None:
        if (ways := options.get("ways", 2)) < 2:
            raise ValueError(f"data.ways={ways}: task=few_shot tells classes apart, of which an episode needs at least 2")

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        return tuple(self.encoder.blocks)

    # --- vectors ---

    def features(self, batch: Batch) -> Tensor:
        """Returns one row for each document, [n, d]: the mean of its hidden states."""
        hidden_btd = self.encoder.hidden(
            batch["tokens"], documents_bt=batch["documents"], positions_bt=batch["positions"], features=token_features(batch)
        )
        return mean_of_documents(hidden_btd, batch, batch["documents"] >= 0)

    def compared(self, batch: Batch) -> Tensor:
        """Returns what a metric algorithm compares, a row for each document: its features, and its notes where they are read."""
        vectors = self.features(batch).float()
        return vectors if self.melodies is None else torch.cat((vectors, self.melodies(batch).flatten(1)), 1)

    def documents(self, batch: Batch, name: str = "piece") -> Tensor:
        """Returns the batch's entry `name`, such as `piece` or `way`, once for each document: [n]."""
        return each_document(batch, name)

    def way_logits(self, batch: Batch) -> Tensor:
        """Returns the logits of the head for each document, [n, ways]."""
        assert self.head is not None
        logits: Tensor = self.head(self.features(batch))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    # --- training ---

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the mean loss of the episodes; for rows without `query`, {"support": the cross-entropy of their ways}."""
        if "query" not in batch:
            return {PLAIN: F.cross_entropy(self.way_logits(batch), each_document(batch, "way"))}
        (term,) = self.terms
        if isinstance(self.algorithm, InnerLoop):
            found = [episode_loss(self, self.algorithm, *parts, term=PLAIN) for parts in episodes(batch)]
            return {term: torch.stack(found).mean()}
        found = [F.cross_entropy(logits, true) for logits, true in self._answers(batch)]
        return {term: torch.stack(found).mean()}

    def _answers(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the logits of the queries and their ways, of each episode, by a metric algorithm."""
        vectors = self.compared(batch)
        episode, way, asked = (each_document(batch, name) for name in ABOUT)
        for number in range(int(episode.max()) + 1):
            support, query = ((episode == number) & (asked == side) for side in (0, 1))
            ways = int(way[support].max()) + 1
            yield self.vector_logits(vectors[support], way[support], vectors[query], ways=ways), way[query]

    # --- answers ---

    @property
    def compares_vectors(self) -> bool:
        """Whether the algorithm only compares what `compared` returns, so that each piece needs to be read once."""
        return not isinstance(self.algorithm, InnerLoop)

    def vector_logits(self, support_sd: Tensor, way_s: Tensor, query_qd: Tensor, *, ways: int) -> Tensor:
        """Returns the logits of the ways for each query, [q, n], by a metric algorithm."""
        found: Tensor = self.algorithm.logits(support_sd, way_s, query_qd, ways=ways)  # type: ignore[operator]
        return found

    def answers(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Returns the logits [q, n] and the true ways [q] of the queries of each episode, after adaptation if there is any."""
        if self.compares_vectors:
            return list(self._answers(batch))
        found = []
        for support, query in episodes(batch):
            weights = self.adapted(support)
            with torch.no_grad():
                logits = outputs_at(self, query, "way_logits", parameters=weights)
            found.append((logits, each_document(query, "way")))
        return found

    def adapted(self, support: Batch, *, steps: int | None = None) -> Weights:
        """Returns the weights after gradient descent on a support; steps: None for those of the algorithm in evaluation.

        Raises: ValueError if the support has more classes than the head.
        """
        loop = self.algorithm
        assert isinstance(loop, InnerLoop)
        if int(support["way"].max()) >= self.ways:
            raise ValueError(f"the head was trained for {self.ways} ways, the episode has more; give ways={self.ways}")
        return adapted(self, loop, support, term=PLAIN, steps=steps)

    # --- validation ---

    def measures(self) -> tuple[Measure, ...]:
        clusters = cluster_measures(self.algorithm)
        return (Measure("nll", "nats"), Measure("accuracy", "share of queries", higher_is_better=True), *clusters)

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns cross-entropy and accuracy of the queries; with algorithm.clusters the share of episodes of each cluster."""
        answers = self.answers(batch)
        logits, true = torch.cat([x for x, _ in answers]), torch.cat([y for _, y in answers])
        count = torch.tensor(len(true), device=self.device)
        right = (logits.argmax(-1) == true).float().mean()
        found = {"nll": Measured(F.cross_entropy(logits, true), count), "accuracy": Measured(right, count)}
        return found | cluster_shares(self, self.algorithm, batch, term=PLAIN)

    # --- the checkpoint ---

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        """Returns weights for a new run: those of another run of the same algorithm, or of the encoder of any run on tokens."""
        own = dict(self.state_dict())
        weights = dict(saved["state_dict"])
        if {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in own.items()}:
            return super().weights_from(saved, path)
        given = encoder_weights(saved, own=own, prefix="encoder.", tokenizer=self.tokenizer, path=path)
        return self.algorithm.carried(own, given, ALGORITHM) if isinstance(self.algorithm, InnerLoop) else own | given

    @classmethod
    def constructor_arguments_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor arguments that come from the data, read from a checkpoint."""
        return {"tokenizer": Tokenizer.from_state(saved["tokenizer"]), "ways": saved["ways"]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["etude"] |= {
            "tokenizer": self.tokenizer.state_dict(), "tokenizer_fingerprint": self.tokenizer.fingerprint, "ways": self.ways,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["etude"]
        if saved["tokenizer_fingerprint"] != self.tokenizer.fingerprint:
            raise ValueError("the checkpoint was trained with another tokenizer; give the options of its run")
        if saved["ways"] != self.ways and self.head is not None:
            raise ValueError(
                f"the checkpoint was trained with data.ways={saved['ways']}, here it is {self.ways}; give that of its run"
            )
