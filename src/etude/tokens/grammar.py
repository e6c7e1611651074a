"""Constrained decoding: masks of the tokens that may come next, so that every sample can be decoded to a score.

A `Grammar` is an automaton whose states are tuples, so that masks can be cached by state and tokens can be tried ahead
(a byte-pair token is allowed if its expansion is). A `Decoder` runs a grammar for a batch of sequences.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, Self

import numpy as np

PAD, BOS, EOS, CONT = 0, 1, 2, 3
UNLIMITED = -1  # value of "bars left" if there is no limit
CLOSED = -2  # value of "bars left" after the last bar: only sounding notes may end, then EOS must follow

State = tuple[Any, ...]


class Grammar(ABC):
    """The sequences of body tokens that a tokenizer can decode, as an automaton.

    Special and control tokens are handled by the decoder and are no part of the grammar. `step` may assume that the token is
    allowed by `mask`; the decoder checks this.
    """

    vocab_size: int
    feature_names: tuple[str, ...]

    @abstractmethod
    def start(self, num_bars: int) -> State:
        """Returns the state before the first body token of a piece of `num_bars` bars (UNLIMITED for no limit)."""

    @abstractmethod
    def step(self, state: State, token: int) -> State:
        """Returns the state after an allowed body token."""

    @abstractmethod
    def mask(self, state: State) -> np.ndarray:
        """Returns which tokens may follow: bool [V], read-only, never all False; EOS is included if the piece may end."""

    @abstractmethod
    def key(self, state: State) -> Hashable:
        """Returns a key for caches; equal for states that allow the same continuations up to the next bar line."""

    @abstractmethod
    def features(self, state: State) -> tuple[int, ...]:
        """Returns the features, in the order of `feature_names`, of the last token."""


def frozen(mask: np.ndarray) -> np.ndarray:
    """Makes a mask read-only, since it is shared by all states with the same key, and returns it."""
    mask.flags.writeable = False
    return mask


def bars_after(left: int, crossed: int) -> int:
    """Returns the bars left after `crossed` bar lines; CLOSED if that is below 0."""
    if left == UNLIMITED or not crossed:
        return left
    return left - crossed if left >= crossed else CLOSED


def check_num_bars(num_bars: int | None) -> int:
    """Returns `num_bars`, or UNLIMITED for None, as `Grammar.start` expects it.

    Raises:
        ValueError: below 1.
    """
    if num_bars is None:
        return UNLIMITED
    if num_bars < 1:
        raise ValueError(f"num_bars is {num_bars}; give 1 or more, or leave it out for any length")
    return num_bars


class Decoder:
    """Tracks a batch of sequences, which grow by one token at a time, and tells which tokens may come next.

    Pass every token to `push`: BOS, control tokens, the prompt and the sampled tokens. Push PAD for a row whose prompt has not
    begun or that is finished; it changes nothing.

    Args:
        grammar: the grammar of the tokenizer.
        batch: number of rows, B.
        first_body: the first id that is neither a special nor a control token.
        num_bars: exactly this many bars, or None for any length.
    """

    def __init__(self, grammar: Grammar, *, batch: int, first_body: int, num_bars: int | None = None) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}; give 1 or more")
        self._grammar = grammar
        self._first_body = first_body
        self._states: list[State] = [grammar.start(check_num_bars(num_bars))] * batch
        self._features: list[tuple[int, ...]] = [(0,) * len(grammar.feature_names)] * batch
        self._finished = np.zeros(batch, dtype=bool)
        self._only_pad = np.zeros(grammar.vocab_size, dtype=bool)
        self._only_pad[PAD] = True

    @property
    def finished(self) -> np.ndarray:
        """Which rows have ended with EOS: bool [B]."""
        return self._finished

    def push(self, ids_b: Sequence[int] | np.ndarray) -> None:
        """Appends one token to each row.

        Raises:
            ValueError: a body token is not allowed in its row.
        """
        grammar, nothing = self._grammar, (0,) * len(self._grammar.feature_names)
        for row, token in enumerate(np.asarray(ids_b).tolist()):
            if token < self._first_body:
                if token == EOS:
                    self._finished[row] = True
                self._features[row] = nothing
                continue
            state = self._states[row]
            if self._finished[row] or not grammar.mask(state)[token]:
                raise ValueError(
                    f"row {row}: token {token} is not allowed here (see decoder.allowed()); "
                    "pass prompts as the tokenizer encodes them, from the start of a piece"
                )
            state = grammar.step(state, token)
            self._states[row] = state
            self._features[row] = grammar.features(state)

    def select(self, rows: Sequence[int]) -> None:
        """Continues with copies of these rows, as many as there are, in this order."""
        self._states = [self._states[row] for row in rows]
        self._features = [self._features[row] for row in rows]
        self._finished = self._finished[list(rows)]

    def fork(self) -> Self:
        """Returns an independent copy."""
        twin = copy.copy(self)
        twin.select(range(len(self._states)))
        return twin

    def allowed(self) -> np.ndarray:
        """Returns which tokens may come next in each row: bool [B, V]; a finished row allows only PAD."""
        masks = [
            self._only_pad if done else self._grammar.mask(state)
            for state, done in zip(self._states, self._finished, strict=True)
        ]
        return np.stack(masks)

    def features(self) -> dict[str, np.ndarray]:
        """Returns the features of the last token of each row: name -> int64 [B]; 0 for special and control tokens."""
        columns = zip(*self._features, strict=True)
        return {name: np.array(column, dtype=np.int64) for name, column in zip(self._grammar.feature_names, columns, strict=True)}


class JoinedDecoder:
    """Several decoders as one: the rows of the first, then those of the second, and so on."""

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        self._decoders = tuple(decoders)
        self._ends = np.cumsum([len(decoder.finished) for decoder in self._decoders])[:-1]

    @property
    def finished(self) -> np.ndarray:
        """Which rows have ended with EOS: bool [B]."""
        return np.concatenate([decoder.finished for decoder in self._decoders])

    def push(self, ids_b: Sequence[int] | np.ndarray) -> None:
        """Appends one token to each row. Raises: ValueError for a body token that is not allowed in its row."""
        for decoder, ids in zip(self._decoders, np.split(np.asarray(ids_b), self._ends), strict=True):
            decoder.push(ids)

    def select(self, rows: Sequence[int]) -> None:
        """Continues with copies of these rows, as many as there are, in this order; each stays within its decoder."""
        starts = [0, *self._ends.tolist()]
        for decoder, start, part in zip(self._decoders, starts, np.split(np.asarray(rows), self._ends), strict=True):
            decoder.select((part - start).tolist())

    def fork(self) -> JoinedDecoder:
        """Returns an independent copy."""
        return JoinedDecoder([decoder.fork() for decoder in self._decoders])

    def allowed(self) -> np.ndarray:
        """Returns which tokens may come next in each row: bool [B, V]."""
        return np.concatenate([decoder.allowed() for decoder in self._decoders])

    def features(self) -> dict[str, np.ndarray]:
        """Returns the features of the last token of each row: name -> int64 [B]."""
        each = [decoder.features() for decoder in self._decoders]
        return {name: np.concatenate([features[name] for features in each]) for name in each[0]}
