"""Beam search, also in groups that avoid each other's tokens.

Shapes: r beams of all groups, m beams of one group, t time, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.models.symbolic.sampling import PAD, ForkingDecoder, distribution, forbid, prompt_features, to_device
from etude.models.symbolic.transformer import Transformer

EOS = 2


@dataclass
class _Group:
    """Beams that compete with each other.

    scores: log-probability of each beam, [m]; -inf for one that does not exist. rows: of the batch.
    ended: (log-probability / length ** length_penalty, tokens behind the prompt) of finished sequences.
    """

    rows: range
    scores: list[float] = field(default_factory=list)
    ended: list[tuple[float, list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scores = [0.0] + [-math.inf] * (len(self.rows) - 1)

    def worst(self) -> float:
        """The score that a sequence must pass to be among the best; -inf while there are fewer than beams."""
        best = sorted((score for score, _ in self.ended), reverse=True)[: len(self.rows)]
        return best[-1] if len(best) == len(self.rows) else -math.inf

    def advance(self, log_p_mv: Tensor, taken_v: Tensor, made: list[list[int]], length_penalty: float) -> list[tuple[int, int]]:
        """Takes one step: ends sequences, and returns (row, token) of each beam that goes on, as many as beams.

        log_p_mv: of the next tokens. taken_v: what is subtracted to choose, but not counted. made: the tokens of each row.
        """
        m, vocab = log_p_mv.shape
        total_mv = torch.tensor(self.scores, dtype=torch.float64)[:, None] + log_p_mv
        values, places = (total_mv - taken_v).flatten().topk(min(2 * m, m * vocab))
        chosen: list[tuple[int, int]] = []
        scores: list[float] = []
        for rank, (value, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            beam, token = divmod(place, vocab)
            row, score = self.rows[beam], float(total_mv[beam, token])
            if value == -math.inf or len(chosen) == m:
                break
            if token == EOS:
                if rank < m:
                    tokens = [*made[row], token]
                    self.ended.append((score / len(tokens) ** length_penalty, tokens))
                continue
            chosen.append((row, token))
            scores.append(score)
        spare = chosen[0] if chosen else (self.rows[0], PAD)
        self.scores = scores + [-math.inf] * (m - len(scores))
        return chosen + [spare] * (m - len(chosen))

    def is_done(self, length: int, length_penalty: float) -> bool:
        """Whether no beam can pass the finished sequences at its present length."""
        return max(self.scores) == -math.inf or max(self.scores) / length**length_penalty <= self.worst()


@torch.inference_mode()
def beam_search(
    model: Transformer,
    prompt_1t: Tensor,
    *,
    decoder: ForkingDecoder,
    max_new_tokens: int,
    beams: int = 4,
    groups: int = 1,
    diversity: float = 0.5,
    length_penalty: float = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    penalties: Callable[[], np.ndarray] | None = None,
    on_step: Callable[[int], Any] | None = None,
) -> list[list[int]]:
    """Returns `beams` probable continuations of a prompt, best first; of several groups first the best of each, then the second.

    A sequence is scored by log p / length ** length_penalty. Groups are advanced one after another in each step; to choose,
    `diversity` is subtracted from the log-probability of a token for each beam of an earlier group that has just taken it. There
    is no randomness. A group ends when its best beam, at its present length, is behind as many finished sequences as it has
    beams; sequences that reach max_new_tokens count as they are.

    Args:
        decoder: a new decoder for `beams` rows.
        beams: of all groups, a multiple of groups. groups: 1 is ordinary beam search.
        diversity: at least 0; 0 makes all groups alike.
        temperature, top_k, top_p, min_p: p is that of `sampling.distribution`.
        model, max_new_tokens, penalties, on_step: as of `sampling.generate`. prompt_1t: a single prompt, [1, t].

    Returns:
        The prompt and each continuation, with EOS if it was reached.

    Source: Vijayakumar et al. 2016, "Diverse Beam Search", algorithm 1 with Hamming diversity; Wu et al. 2016 for the length.
    """
    device, size = prompt_1t.device, beams // groups
    many_rt = prompt_1t.expand(beams, -1)
    teams = [_Group(range(start, start + size)) for start in range(0, beams, size)]
    made: list[list[int]] = [[] for _ in range(beams)]
    was_training = model.training
    model.eval()
    try:
        cache = model.new_cache(beams, prompt_1t.shape[1] + max_new_tokens)
        tokens, features = many_rt, prompt_features(decoder, many_rt)
        for length in range(1, max_new_tokens + 1):
            logits_rv = model(tokens, features=to_device(features, device), cache=cache)[:, -1].float().cpu()
            logits_rv = forbid(logits_rv, decoder.allowed(), decoder.finished)
            if penalties is not None:
                logits_rv = logits_rv - torch.from_numpy(penalties())
            log_p_rv = distribution(logits_rv, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p).log()
            taken_v, steps = torch.zeros(log_p_rv.shape[1], dtype=torch.float64), []
            for team in teams:
                found = team.advance(log_p_rv[team.rows.start : team.rows.stop], diversity * taken_v, made, length_penalty)
                for (_, token), score in zip(found, team.scores, strict=True):
                    taken_v[token] += score > -math.inf
                steps += found
            rows = [row for row, _ in steps]
            made = [[*made[row], token] for row, token in steps]
            if on_step is not None:
                on_step(length)
            if all(team.is_done(length, length_penalty) for team in teams):
                break
            if rows != list(range(beams)):
                cache.select(torch.tensor(rows, device=device))
                decoder.select(rows)
            next_r = np.array([token for _, token in steps])
            decoder.push(next_r)
            tokens = torch.from_numpy(next_r)[:, None].to(device)
            features = {name: values[:, None] for name, values in decoder.features().items()}
    finally:
        model.train(was_training)
    return [[*prompt_1t[0].tolist(), *sequence] for sequence in _ranked(teams, made, length_penalty)]


def _ranked(teams: list[_Group], made: list[list[int]], length_penalty: float) -> list[list[int]]:
    """The continuations of all groups: the best of each, then the second of each, and so on."""
    columns = []
    for team in teams:
        alive = [
            (score / len(made[row]) ** length_penalty, made[row])
            for row, score in zip(team.rows, team.scores, strict=True)
            if score > -math.inf
        ]
        columns.append([tokens for _, tokens in sorted([*team.ended, *alive], key=lambda each: -each[0])[: len(team.rows)]])
    ranks = max(map(len, columns))
    return [column[rank] for rank in range(ranks) for column in columns if rank < len(column)]
