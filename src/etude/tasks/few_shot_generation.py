"""Meta-learning of a language model that takes up a new style from a few pieces.

Shapes: b rows, t tokens of a row, v tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from etude.core.batch import Batch
from etude.core.factories import kind_of
from etude.core.gradients import outputs_at
from etude.core.measuring import Measure, Measured
from etude.core.task import OptimizerFactory, SchedulerFactory, Task
from etude.objectives.inner_loop import InnerLoop, Weights
from etude.tasks.episode_loops import (
    ALGORITHM,
    adapted,
    cluster_measures,
    cluster_shares,
    differentiable_twice,
    episode_loss,
    episodes,
    own_weights,
    started,
)
from etude.tasks.language_model import LanguageModel
from etude.tasks.token_nll import nll_of
from etude.tokens.tokenizer import Tokenizer

PLAIN = "nll"  # the term of a batch that is no episode
RATE = 0.02  # of the inner steps; with 0.1 the likelihood of a trained model is lost in them


class FewShotGeneration(LanguageModel):
    """Trains initial weights of a language model, from which a few steps on a few pieces lead to a new style.

    A batch holds what `LanguageModel` reads, one piece in each row, and `episode`, `way` and `query` as in
    `etude.data.scores.episodes`: an episode is a style, of which some pieces are learned from and others asked about. The term is
    `query`, the mean negative log-likelihood of the queries after the inner steps in nats per token; with algorithm=reptile
    `distance`; without an algorithm `nll`, the likelihood of all pieces without adaptation, which is the baseline. There is no
    `trace` of an episode.

    A checkpoint is one of a language model: `generate.py` samples from the initial weights, and any run starts from them by
    weights=RUN, such as experiment=my_style. With algorithm.clusters such a run starts from the first of the initial weights.

    Args:
        algorithm: called with dim; see `etude.objectives.maml` and `reptile`. None for none.
        ways: of the data: styles of an episode. Stored in the checkpoint.
        All others: see `LanguageModel`.

    Raises: ValueError for an algorithm that has no inner loop.
    """

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        tokenizer: Tokenizer,
        ways: int,
        algorithm: Callable[..., nn.Module] | None = None,
        trained_labels: Mapping[str, Sequence[str]] | None = None,
        infills: bool = False,
        label_dropout: float = 0.0,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        plain = {} if algorithm is None else differentiable_twice(algorithm)
        super().__init__(
            model=(lambda **sizes: model(**sizes, **plain)) if plain else model, tokenizer=tokenizer, optimizer=optimizer,
            trained_labels=trained_labels, infills=infills, label_dropout=label_dropout, scheduler=scheduler,
            loss_weights=loss_weights, seed=seed,
        )  # fmt: skip
        self.ways = ways
        self.algorithm: InnerLoop | None = None
        if algorithm is None:
            return
        kind = kind_of(algorithm)
        if not (isinstance(kind, type) and issubclass(kind, InnerLoop)):
            raise ValueError(
                f"task=few_shot_generation adapts weights, and {kind.__name__} compares vectors; set algorithm=reptile, "
                "fomaml or maml"
            )
        made = algorithm(dim=0, usual_rate=RATE)
        assert isinstance(made, InnerLoop)
        made.attach(dict(self.named_parameters()))
        self.algorithm = made
        self.terms = (made.term,)  # type: ignore[misc]
        self.example_axis = None  # type: ignore[misc]  # a row of an episode means nothing without the others
        del self.traces_tokens  # see `PredictsTokens`

    # --- training ---

    recompute_trace = Task.recompute_trace  # there is none of an episode

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the embeddings as `LanguageModel` does. Raises: ValueError with an algorithm."""
        if self.algorithm is not None:
            raise ValueError("an algorithm learns from the tokens of whole episodes; set algorithm=null")
        return super().inputs(batch)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the mean loss of the episodes; for rows without `query`, and without an algorithm, the `nll` of all rows."""
        if self.algorithm is None or "query" not in batch:
            return super().losses(batch)
        found = [episode_loss(self, self.algorithm, *parts, term=PLAIN) for parts in episodes(batch)]
        return {self.algorithm.term: torch.stack(found).mean()}

    def adapted(self, support: Batch, *, steps: int | None = None) -> Weights:
        """Returns the weights after gradient descent on a support; steps: None for those of the algorithm in evaluation."""
        assert self.algorithm is not None
        return adapted(self, self.algorithm, support, term=PLAIN, steps=steps)

    def starting_weights(self, support: Batch) -> Weights:
        """Returns the weights from which it adapts to a support: with algorithm.clusters those that suit it best."""
        if self.algorithm is None:
            return own_weights(self)
        return started(self, self.algorithm, support, term=PLAIN)

    def inner_rates(self) -> dict[str, float] | None:
        """Returns the learning rate of each weight in the inner steps; None without an algorithm."""
        if self.algorithm is None:
            return None
        with torch.no_grad():
            return {name: float(rate) for name, rate in self.algorithm.rates().items()}

    # --- validation ---

    def measures(self) -> tuple[Measure, ...]:
        more = () if self.algorithm is None else (Measure("nll_before", "nats per token"), *cluster_measures(self.algorithm))
        return (*super().measures(), *more)

    def measure(self, batch: Batch) -> dict[str, Measured]:
        """Returns {"nll": the negative log-likelihood of the queries after adaptation to their support}.

        With an algorithm also `nll_before`, that without adaptation, and with algorithm.clusters the share of episodes of each
        cluster. Of a batch that holds no episodes, it is the likelihood of all rows as they are.
        """
        if "query" not in batch:
            return super().measure(batch)
        parts = list(episodes(batch))
        queries = {name: torch.cat([query[name] for _, query in parts]) for name in parts[0][1]}
        before = nll_of(self.logits(queries), queries["targets"])
        if self.algorithm is None:
            return {"nll": before}
        with torch.no_grad():
            logits = torch.cat([self.logits_at(query, self.adapted(support)) for support, query in parts])
        shares = cluster_shares(self, self.algorithm, batch, term=PLAIN)
        return {"nll": nll_of(logits, queries["targets"]), "nll_before": before, **shares}

    def logits_at(self, batch: Batch, weights: Weights) -> Tensor:
        """Returns the logits [b, t, v] of each next token with other weights."""
        logits: Tensor = outputs_at(self, batch, "logits", parameters=weights)
        return logits

    # --- the checkpoint ---

    def weights_from(self, saved: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
        """Returns weights for a new run: those of another run of the same algorithm, or of any language model."""
        own, given = dict(self.state_dict()), dict(super().weights_from(saved, path))
        if self.algorithm is None or any(name.startswith(ALGORITHM) for name in given):
            return given
        return self.algorithm.carried(own, given, ALGORITHM)

    @classmethod
    def constructor_arguments_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().constructor_arguments_from(saved), "ways": saved["ways"]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["etude"]["ways"] = self.ways
